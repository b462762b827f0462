"""What a detection found, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from snt.report.figures import duration, gigabytes, percent
from snt.report.overlap import comparison

if TYPE_CHECKING:
    from snt.languages import LanguageDetection


def detection_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """Counts and shares by kind beside the base rates; then the cost, and where the files are."""
    files = f"scores: {', '.join(report['scores'])}"
    return [_kinds(report), _cost(report), f"mask: {report['mask']}", files]


def mask_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """Counts and shares by kind beside the base rates, and where the files are."""
    lines: list[RenderableType] = [_kinds(report), f"mask: {report['mask']}"]
    return lines + [f"scores, merged: {', '.join(report['scores'])}"] * bool(report["scores"])


def shard_lines(report: Mapping[str, Any]) -> list[RenderableType]:
    """The cost of a shard, its files, and what to do with them."""
    shard = report["shard"]
    return [
        f"shard {shard['number']} of {shard['of']}: no mask is cut from a part of a corpus",
        _cost(report),
        f"scores: {', '.join(report['scores'])}",
        "merge all shards and choose the selection with `snt mask from-scores`",
    ]


def _kinds(report: Mapping[str, Any]) -> Table:
    share, model = report["parameter_share"], (report["model"] or {}).get("id", "an unnamed model")
    of_model = f"of {model}" if share is None else f"{percent(share, 2)} of {model}"
    table = Table(
        title=f"{report['neurons']:,} neurons, {report['parameters']:,} parameters ({of_model})",
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
    return table


def _cost(report: Mapping[str, Any]) -> str:
    dropped = report["prompts_dropped"]
    return (
        f"{report['prompts']} prompts{f', {dropped} of them dropped,' if dropped else ''} in "
        f"{duration(report['seconds'])} "
        f"({duration(report['forward_seconds'])} of it the model's own forward passes), "
        f"at most {gigabytes(report['peak_bytes'])} of memory"
    )


def languages_report(found: LanguageDetection) -> list[RenderableType]:
    """The detection of each language, then how their masks overlap."""
    parts: list[RenderableType] = []
    for name, detection in found.detections.items():
        parts += [Text(f"\n{name}", style="bold"), *detection_table(detection.as_json())]
    return [*parts, *comparison(found.comparison)]
