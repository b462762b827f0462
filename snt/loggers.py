"""Loggers of a training run, by the names that `--report-to` takes: the Trainer's own callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from snt.errors import UnavailableError, unknown_name

# Name -> the package that must be there.
LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_loggers(names: Sequence[str]) -> None:
    """Raises UnknownNameError, or UnavailableError with the install line."""
    for name in names:
        if name not in LOGGERS:
            raise unknown_name("logger", name, LOGGERS)
        if find_spec(LOGGERS[name]) is None:
            raise UnavailableError(
                f"--report-to {name} needs the package {LOGGERS[name]}: pip install {LOGGERS[name]}"
            )


def logger_callbacks(names: Sequence[str], folder: Path) -> list[Any]:
    """One callback per logger; TensorBoard's event files go to `folder`. Raises as the check."""
    check_loggers(names)
    if not names:
        return []
    from transformers.integrations import integration_utils

    callbacks = []
    for name in dict.fromkeys(names):
        made = integration_utils.INTEGRATION_TO_CALLBACK[name]
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder))
            callbacks.append(made(writer))
        else:
            callbacks.append(made())
    return callbacks
