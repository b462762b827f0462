"""How the progress of a long work is drawn. Apart, so that a short command need not import it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def bars(unit: str, console: Console, quiet: bool) -> Progress:
    """A bar for each task, with its rate in `unit` and the time left."""
    return Progress(
        TextColumn("{task.description:<27}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        console=console,
        disable=quiet,
        refresh_per_second=4,
    )


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        # At the end the rate of the whole; rich would show that of the last moments.
        ended = task.finished_time
        speed = task.completed / ended if ended else task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else f"- {self.unit}/s")
