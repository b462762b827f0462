"""The parts that terminal reports are made of."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text


def rule(title: Text) -> RenderableType:
    """A line across, with a title, above a part."""
    return Padding(Rule(title, align="left", style="dim"), (1, 0, 0, 0))


def line(text: str, style: str = "") -> RenderableType:
    """A sentence, a column in."""
    return Padding(Text(text, style=style), (0, 0, 0, 1))


def table(first: str, *others: str) -> Table:
    """A table whose first column is words and whose others are figures."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(first)
    for name in others:
        # Too narrow a terminal gets two lines for a figure, never a part of it.
        made.add_column(name, justify="right", overflow="fold")
    return made
