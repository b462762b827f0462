"""What long work tells whoever waits for it; the command line draws it, others ignore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[float], None]


class Progress(Protocol):
    """Sentences, and tasks with a known amount of work."""

    def say(self, text: str) -> None:
        """One sentence about what was decided or is under way."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """A bar of `total` units while the block runs; call the yielded function to move it."""
        yield lambda _: None


class Silence:
    """Progress that goes nowhere: the default of the Python API."""

    def say(self, text: str) -> None:
        """Say nothing."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Draw nothing."""
        yield lambda _: None
