"""What all stopped work has in common: where it is kept, and whether a run may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snt.errors import MismatchError


def unfinished_directory(output: Path) -> Path:
    """Where unfinished work is kept: beside what it will become."""
    return output.with_name(f"{output.name}.unfinished")


def check_begun_alike(what: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raise MismatchError, which names what differs, unless a run was begun with these settings.

    `what` is the unfinished work with its verb: "the detection in m.unfinished was". Settings are
    flat JSON values by name.
    """
    differing = [
        f"{name} was {theirs.get(name)!s:.40} and is {mine.get(name)!s:.40}"
        for name in sorted(theirs.keys() | mine.keys())
        if theirs.get(name) != mine.get(name)
    ]
    if differing:
        raise MismatchError(
            f"{what} begun with other settings: {'; '.join(differing)}. Give the same, or leave "
            "--resume out to begin again"
        )
