"""What a detection found, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.report.figures import duration, gigabytes, percent
from snt.report.overlap import comparison

if TYPE_CHECKING:
    from snt.languages import LanguageDetection


def detection_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """Counts and shares by kind beside the base rates; then the cost, and where the files are."""
    table = Table(
        title=f"{report['neurons']:,} neurons, {report['parameters']:,} parameters "
        f"({percent(report['parameter_share'], 2)} of {report['model']['id']})",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("kind")
    for name in ("neurons", "of its kind", "of the mask", "base rate"):
        table.add_column(name, justify="right")
    for kind, count in report["counts"]["by_kind"].items():
        table.add_row(
            kind,
            f"{count:,}",
            percent(report["shares"]["by_kind"][kind], 2),
            percent(count / max(1, report["neurons"])),
            percent(report["base_rates"][kind]),
        )
    cost = (
        f"{report['prompts']} prompts in {duration(report['seconds'])} "
        f"({duration(report['forward_seconds'])} of it the model's own forward passes), "
        f"at most {gigabytes(report['peak_bytes'])} of memory"
    )
    return [table, cost, f"mask: {report['mask']}", f"scores: {', '.join(report['scores'])}"]


def languages_report(found: LanguageDetection) -> list[RenderableType]:
    """The detection of each language, then how their masks overlap."""
    parts: list[RenderableType] = []
    for name, detection in found.detections.items():
        parts += [f"\n[bold]{name}[/bold]", *detection_table(detection.as_json())]
    return [*parts, *comparison(found.comparison)]
