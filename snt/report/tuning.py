"""What a tuning changed and did, for the terminal."""

from __future__ import annotations

from rich.console import RenderableType

from snt.report.evaluation import comparison_table
from snt.report.figures import duration, gigabytes, percent
from snt.tuning import Tuning


def tuning_table(tuned: Tuning) -> list[RenderableType]:
    """The proof of change, then before and after."""
    proof = tuned.proof
    lines: list[RenderableType] = [
        f"{tuned.steps} steps in {duration(tuned.seconds)}, at most "
        f"{gigabytes(tuned.peak_bytes)} of memory",
        f"read back from the saved patch: {proof.changed:,} of {proof.masked:,} masked entries "
        f"changed ({percent(proof.changed / proof.masked)}), largest |Δ| "
        f"{proof.max_abs_delta:.2g}, mean {proof.mean_abs_delta:.2g}; "
        f"{proof.outside_changed} entries outside the mask changed",
    ]
    if tuned.before is not None and tuned.after is not None:
        lines.append(
            comparison_table(tuned.before, tuned.after, "before and after", ("before", "after"))
        )
    return [*lines, f"patch: {tuned.patch}"]
