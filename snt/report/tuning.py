"""What a tuning changed and did, for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.report.evaluation import comparison_table
from snt.report.figures import curve_bar, duration, gigabytes, percent
from snt.training import Training
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
    lines += curve_table(tuned.losses)
    return [*lines, f"patch: {tuned.patch}"]


def curve_table(run: Training) -> list[RenderableType]:
    """The guard's curve: safety against over-refusal along the run, nothing without points."""
    if not run.curve:
        return []
    table = Table(
        title="along the run: short replies to held-out prompts",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        caption="the guard stopped the run; deltas are those of the marked step"
        if run.stopped
        else None,
    )
    table.add_column("step", justify="right", no_wrap=True)
    for name in ("harmful, not refused", "look-alike, refused"):
        table.add_column(name, no_wrap=True)
    for point in run.curve:
        mark = " ←" if run.stopped and point.step == run.kept_step else ""
        cells = (
            f"{curve_bar(share)} {percent(share, 0):>4}"
            for share in (point.non_refusal, point.over_refusal)
        )
        table.add_row(f"{point.step}{mark}", *cells)
    return [table]
