"""The one place that prints: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType

from snt.processes import leads

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
            self.console.print(printable(text), markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Callable[[float], None]]:
        """A bar with the rate and the time left; a line at the end where there is no terminal."""
        from snt.cli.bars import bars

        with bars(unit, self.console, self.quiet) as drawn:
            number = drawn.add_task(name, total=total)
            yield lambda amount: drawn.advance(number, amount)
            # Fractions of a unit do not add up to it exactly.
            drawn.update(number, completed=total)

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
            # Of a file's own words none may be markup or steer the terminal.
            if isinstance(renderable, str):
                console.print(printable(renderable), markup=False)
            else:
                console.print(renderable)


def printable(text: str) -> str:
    """`text` without the control characters that terminals obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON; they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
