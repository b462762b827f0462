"""How masks overlap, drawn for the terminal: a matrix beside chance, and what several share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import Style
from rich.table import Table
from rich.text import Text

from snt.anatomy import KINDS
from snt.chance import Chance
from snt.file_facts import Share
from snt.overlap import Comparison, Overlap, Shared
from snt.report.figures import give_or_take, percent, times
from snt.report.layer_map import heat
from snt.report.provenance import clean
from snt.report.tables import line, rule, table

_LONGEST_HEAD = 7  # Of a column of the matrix; longer names become numbers.
_NOTE = (
    "by chance: random masks with the same counts in every layer and kind; ± one standard deviation"
)


def comparison(found: Comparison) -> list[RenderableType]:
    """The overlaps of two masks or more, and the neurons that they share; nothing for fewer."""
    if not found.overlaps:
        return []
    parts: list[RenderableType] = [rule(Text("overlap of the masks", style="bold"))]
    if len(found.neurons) == 2:
        parts.append(_pairs(found.overlaps))
    else:
        parts.append(OverlapMatrix(found))
    parts.append(line(_NOTE, "dim"))
    for shared in found.shared:
        parts += _shared(shared)
    return parts


@dataclass(frozen=True)
class OverlapMatrix:
    """Two matrices, IoU over times chance and neurons in both over chance; a list of pairs where
    the terminal is too narrow for them.
    """

    found: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colours = console.color_system in ("256", "truecolor")
        largest = max(overlap.iou for overlap in self.found.overlaps)
        first = self._matrix(
            lambda o: _heated(f"{o.iou:.3f}", o.iou / largest if largest else 0.0, colours),
            lambda o: Text(times(o.ratio), style="dim" if (o.ratio or 0) < 1.5 else ""),
        )
        second = self._matrix(
            lambda o: Text(f"{o.intersection:,}"),
            lambda o: Text(give_or_take(o.expected, o.chance.deviation, "±"), style="dim"),
        )
        if max(_width(console, options, made) for made in (first, second)) > options.max_width:
            yield _pairs(self.found.overlaps)
            return
        yield line("above the diagonal IoU, below it times chance; on it the neurons of a mask")
        yield first
        yield Text("")
        yield line("above the diagonal neurons in both masks, below it by chance")
        yield second
        yield Text("")

    def _matrix(self, above: Callable[[Overlap], Text], below: Callable[[Overlap], Text]) -> Table:
        names = [clean(name) for name in self.found.names]
        numbered = any(cell_len(name) > _LONGEST_HEAD for name in names)
        heads = [str(n) if numbered else name for n, name in enumerate(names, start=1)]
        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
        made.add_column("", overflow="fold")
        for head in heads:
            made.add_column(head, justify="right", no_wrap=True)
        for row, name in enumerate(self.found.names):
            cells = []
            for column, other in enumerate(self.found.names):
                if row == column:
                    cells.append(Text(f"{self.found.neurons[name]:,}", style="italic"))
                else:
                    overlap = self.found.of(name, other)
                    cells.append(above(overlap) if column > row else below(overlap))
            label = f"{heads[row]} {names[row]}" if numbered else names[row]
            made.add_row(Text(label, style="bold"), *cells)
        return made


def _heated(text: str, part: float, colours: bool) -> Text:
    """A figure on the colour of its size, where the terminal has the colours."""
    if not colours:
        return Text(text)
    colour = heat(part)
    ink = "#000000" if part > 0.5 else "#ffffff"
    return Text(f" {text} ", style=Style(color=ink, bgcolor=colour))


def _width(console: Console, options: ConsoleOptions, made: Table) -> int:
    return console.measure(made, options=options.update(max_width=10_000)).maximum


def _pairs(overlaps: Iterable[Overlap]) -> Table:
    made = table("masks", "in both", "by chance", "times chance", "IoU")
    for overlap in overlaps:
        made.add_row(
            Text(f"{clean(overlap.first)}\n{clean(overlap.second)}", overflow="fold"),
            f"{overlap.intersection:,}",
            _by_chance(overlap.chance),
            times(overlap.ratio),
            f"{overlap.iou:.3f}",
            end_section=True,
        )
    return made


def _shared(shared: Shared) -> list[RenderableType]:
    masks = "both masks" if shared.of == 2 else f"all {shared.of} masks"
    if shared.at_least < shared.of:
        masks = f"at least {shared.at_least} of {shared.of} masks"
    title = Text(f"{shared.neurons:,} neurons in {masks}", style="bold")
    chance = f"  {give_or_take(shared.chance.expected, shared.chance.deviation)} by chance"
    parts: list[RenderableType] = [rule(title.append(chance, style="not bold"))]
    if shared.neurons:
        parts.append(_groups(shared))
    if shared.top:
        top = table("layer", "kind", "neuron", "masks", "smallest score")
        for neuron in shared.top:
            top.add_row(
                str(neuron.layer),
                neuron.kind,
                f"{neuron.index:,}",
                str(neuron.masks),
                f"{neuron.score:.3g}",
            )
        parts += [line("best by their smallest score in the masks that hold them", "dim"), top]
    return parts


def _groups(shared: Shared) -> Table:
    made = table("", "shared", "by chance", "times chance", "of the shared", "base rate")
    made.add_row(
        "all", *_against(shared.neurons, shared.chance), "", "", end_section=True, style="bold"
    )
    _add(made, shared.kinds, shared.kind_chance)
    _add(made, shared.thirds, shared.third_chance)
    return made


def _add(made: Table, groups: Mapping[str, Share], chances: Mapping[str, Chance]) -> None:
    for name, group in groups.items():
        made.add_row(
            Text(name, style="bold"),
            *_against(group.count, chances[name]),
            "-" if group.mask_share is None else percent(group.mask_share),
            Text(percent(group.base_rate), style="dim"),
            end_section=name == KINDS[-1],
        )


def _against(count: int, chance: Chance) -> tuple[str, RenderableType, str]:
    return f"{count:,}", _by_chance(chance), times(chance.ratio(count))


def _by_chance(chance: Chance) -> Text:
    return Text(give_or_take(chance.expected, chance.deviation), style="dim")
