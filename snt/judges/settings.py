"""What judges check of their settings."""

from __future__ import annotations

from snt.errors import RequestError
from snt.evaluation.judges import JudgeChoice


def no_setting(name: str, choice: JudgeChoice) -> None:
    """Raises RequestError when a judge that takes no setting was given one."""
    if choice.setting:
        raise RequestError(
            f"judge {name!r} takes no setting and was given {choice.setting!r}; "
            f"write --judge {name}"
        )
