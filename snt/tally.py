"""What a detection has found so far, and how many prompts it may drop."""

from __future__ import annotations

from dataclasses import dataclass

from snt.errors import RunFailure
from snt.scores import Scores


class TooManyDropped(RunFailure):
    """More than one prompt in a hundred has importances that are not finite."""


@dataclass(frozen=True)
class Tally:
    """What has been scored so far: the first `batches` batches; `dropped` rows, (batch, row in it).

    Where a backend goes layer by layer: all batches in these `layers` alone, and `batches` is 0.
    """

    scores: Scores = Scores({})
    batches: int = 0
    dropped: tuple[tuple[int, int], ...] = ()
    layers: tuple[int, ...] = ()


def check_dropped(dropped: int, rows: int, dtype: str) -> None:
    """Raise TooManyDropped when `dropped` is more than 1% of `rows`."""
    if dropped * 100 <= rows:
        return
    remedy = (
        "its weights may be damaged" if dtype == "float32" else "detect again with --dtype float32"
    )
    raise TooManyDropped(
        f"{dropped} of {rows} prompts have importances that are not finite, more than 1%: a layer "
        f"of the model overflows in {dtype}; {remedy}"
    )
