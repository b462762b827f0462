"""The one place that prints: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from snt.processes import leads


class Output:
    """Where a command's words go. With `as_json` stdout holds one document and nothing else."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        # One process of a command speaks.
        self.as_json, self.quiet = as_json, quiet or not leads()
        self.console = Console(stderr=True, highlight=False)
        for stream in (sys.stdout, sys.stderr):
            # A terminal without Unicode shows a question mark rather than an error.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")

    def say(self, text: str) -> None:
        """One sentence to stderr."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[float], None]]:
        """A bar with the rate and the time left; a line at the end where there is no terminal."""
        with Bars(
            TextColumn("{task.description:<27}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.quiet,
            refresh_per_second=4,
        ) as bars:
            number = bars.add_task(name, total=total)
            yield lambda amount: bars.advance(number, amount)
            # Fractions of a unit do not add up to it exactly.
            bars.update(number, completed=total)

    def result(self, document: Any, *renderables: RenderableType) -> None:
        """The answer: the document as JSON, or what is drawn for people."""
        if not leads():
            return
        if self.as_json:
            text = json.dumps(_finite(document), indent=2, sort_keys=True, ensure_ascii=False)
            Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)
            return
        console = Console(highlight=False)
        for renderable in renderables:
            console.print(renderable)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        # At the end the rate of the whole; rich would show that of the last moments.
        ended = task.finished_time
        speed = task.completed / ended if ended else task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else f"- {self.unit}/s")


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON; they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
