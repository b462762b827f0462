"""A ratio, its bar, and the rounds in which its two sides were timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table: `values` must stay on the good side of `bar`."""

    what: str
    values: tuple[float, ...]
    bar: float
    at_most: bool
    note: str = ""
    every: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the median meets the bar, or every value where each must."""
        if self.every:
            return max(self.values) <= self.bar if self.at_most else min(self.values) >= self.bar
        return self.median <= self.bar if self.at_most else self.median >= self.bar

    def as_json(self) -> dict[str, object]:
        return {
            "what": self.what,
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
            "bar": f"{'<=' if self.at_most else '>='} {self.bar:g}",
            "met": self.met,
            "note": self.note,
        }

    def line(self) -> str:
        """For a terminal."""
        numbers = "".join(
            f"{value:9.3f}" for value in (min(self.values), self.median, max(self.values))
        )
        bar = f"{'<=' if self.at_most else '>='} {self.bar:<5g}"
        return f"{self.what:<64}{numbers}   {bar} {'met' if self.met else 'MISSED'}"


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round; a slow minute of the machine hits all of them.

    Each side runs once before, so that nothing is timed cold.
    """
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(above: list[float], below: list[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(one / other for one, other in zip(above, below, strict=True))
