"""What merging or reverting a patch did, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def apply_table(report: Mapping[str, Any]) -> Table:
    """Entries, rounding, and where the merged model is."""
    return _facts(f"merged into {report['base']}: {report['model']}", report)


def revert_table(report: Mapping[str, Any]) -> Table:
    """What was restored, and where."""
    return _facts(f"reverted: {report['model']}", report)


def _facts(title: str, report: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column("fact")
    table.add_column("value", justify="right")
    for key, value in report.items():
        if key in ("model", "base"):
            continue
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), shown)
    return table
