"""A heat map of a mask in the terminal: one row a kind, one cell a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2

from rich.color import Color
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.style import Style
from rich.text import Text

from snt.report.figures import percent

# Each character covers a doubling of the share, so that sparse layers show beside dense ones.
_SHADES, _PLAIN_SHADES = "░▒▓█", "-+*#"
_STOPS = ((59, 28, 110), (142, 36, 117), (208, 68, 84), (246, 133, 58), (250, 205, 90))
_DOUBLINGS = 5  # that the colours span; the weakest stands for all shares below them
_LABEL = 7
_WIDEST_CELL = 3
_MOST_BLOCKS = 8


@dataclass(frozen=True)
class LayerMap:
    """Masked neurons of each kind in each layer, drawn as shares of the neurons there.

    `counts` holds per kind one count per layer, `sizes` the neurons of that kind in a layer. The
    map takes the console's width: cells of up to three columns, and where single ones do not fit,
    several blocks of layers; a model of hundreds of layers is drawn several layers a cell. It reads
    without colour, and without block characters where the console has none.
    """

    counts: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layers = len(next(iter(self.counts.values())))
        cell, block, step = _layout(layers, max(10, options.max_width - _LABEL - 3))
        draw = _Cells(cell, options.ascii_only, console.color_system in ("256", "truecolor"))
        shares = {kind: self._shares(kind, step) for kind in self.counts}
        largest = max(max(row) for row in shares.values())
        cells = ceil(layers / step)
        for start in range(0, cells, block):
            if start:
                yield Text("")
            stop = min(start + block, cells)
            for kind, row in shares.items():
                line = Text(f"{kind:>{_LABEL - 2}}  ", style="bold", no_wrap=True)
                for share in row[start:stop]:
                    line.append_text(draw.cell(share / largest if share else 0.0))
                yield line
            yield _axis(start, stop, cell, step)
        where = "a layer" if step == 1 else f"{step} layers"
        legend: list[RenderableType] = [
            Text(f"masked share of the neurons of a kind in {where}", style="dim")
        ]
        if largest:
            legend += [draw.legend(largest), Text(self._densest(shares, step), style="dim")]
        yield Padding(Group(*legend), (1, 0, 0, _LABEL))

    def _shares(self, kind: str, step: int) -> list[float]:
        counts = self.counts[kind]
        cells = [counts[start : start + step] for start in range(0, len(counts), step)]
        return [sum(cell) / (len(cell) * self.sizes[kind]) for cell in cells]

    def _densest(self, shares: Mapping[str, list[float]], step: int) -> str:
        kind, row = max(shares.items(), key=lambda item: max(item[1]))
        first = row.index(max(row)) * step
        counts = self.counts[kind][first : first + step]
        layers = f"layer {first}" if step == 1 else f"layers {first} to {first + len(counts) - 1}"
        total = self.sizes[kind] * len(counts)
        return f"densest: {kind} in {layers}, {sum(counts):,} of {total:,}"


@dataclass(frozen=True)
class _Cells:
    """How cells are drawn: their width, without block characters, as plain blocks of colour."""

    width: int
    ascii_only: bool
    solid: bool

    @property
    def shades(self) -> str:
        return _PLAIN_SHADES if self.ascii_only else _SHADES

    def cell(self, part: float) -> Text:
        """One cell for a share that is `part` of the largest share."""
        if not part:
            return Text(("." if self.ascii_only else "·").ljust(self.width), style="dim")
        shade = self.shades[max(len(self.shades) - 1 - int(-log2(part)), 0)]
        return Text(shade * self.width, style=self._colour(part))

    def legend(self, largest: float) -> Columns:
        """Each character with the share it goes up to."""
        entries = [Text(f"{'.' if self.ascii_only else '·'} none")]
        for number, shade in enumerate(self.shades, start=1):
            bound = 2.0 ** (number - len(self.shades))
            entry = Text()
            lower = bound / 2 if number > 1 else 2.0**-_DOUBLINGS
            for part in (lower, (lower * bound) ** 0.5, bound):
                entry.append(shade, style=self._colour(part))
            entries.append(entry.append(f" to {percent(bound * largest, 2)}"))
        return Columns(entries, padding=(0, 3))

    def _colour(self, part: float) -> Style:
        colour = heat(max(1 + log2(part) / _DOUBLINGS, 0.0))
        # The same behind the character hides it; where colours are few, it must be seen.
        return Style(color=colour, bgcolor=colour if self.solid else None)


def heat(part: float) -> Color:
    """The colour of a value that is `part` (0 to 1) of the largest: dark violet to yellow."""
    at = part * (len(_STOPS) - 1)
    low = min(int(at), len(_STOPS) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True)
    )
    return Color.from_rgb(red, green, blue)


def _layout(layers: int, width: int) -> tuple[int, int, int]:
    """Columns a cell, cells a block, layers a cell, for `width` columns."""
    for cell in range(_WIDEST_CELL, 0, -1):
        if layers * cell <= width:
            return cell, layers, 1
    # Blocks of tens are read more easily than blocks that fill the width.
    block = max(width // 2 // 10 * 10, 5)
    return 2, block, ceil(layers / (block * _MOST_BLOCKS))


def _axis(start: int, stop: int, cell: int, step: int) -> Text:
    """Layer numbers under a block: every fifth or tenth cell, and the last one in any case."""
    every = 5 if cell > 1 else 10
    line = "layer".rjust(_LABEL - 2).ljust(_LABEL)
    last = _LABEL + (stop - 1 - start) * cell
    for number in (*range(start, stop - 1, every), stop - 1):
        column, label = _LABEL + (number - start) * cell, str(number * step)
        if column == last or column + len(label) < last:
            line = line.ljust(column) + label
    return Text(line, style="dim", no_wrap=True)
