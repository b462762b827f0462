"""What is in masks, scores and patches as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from snt.anatomy import KINDS
from snt.atomic import write_text
from snt.chance import Chance
from snt.file_facts import QUANTILES, MaskFacts, PatchFacts, ScoresFacts, Share
from snt.inspection import Inspection
from snt.overlap import Comparison, Overlap, Shared
from snt.report.figures import LABELS, give_or_take, percent, quantile_name, small_percent, times
from snt.report.page import (
    cell,
    doublings,
    page,
    paragraph,
    row,
    table,
    tenths,
    text,
)
from snt.report.provenance import clean, model_name, provenance_lines

_LAYERS_ACROSS = 32
_MOST_CELLS = 8 * _LAYERS_ACROSS
_STRONGER = "A stronger colour is a larger share, a step for each doubling."


def save_page(inspection: Inspection, path: Path) -> Path:
    """Write the page whole or not at all. Raises RequestError where it cannot be written."""
    return write_text(path, inspection_page(inspection))


def inspection_page(inspection: Inspection) -> str:
    """The page: how masks overlap, then every file. Text of the files is shown as text alone."""
    named = {name for file in inspection.files if (name := model_name(file.provenance))}
    lead = f"Model: {', '.join(sorted(named))}." if named else "The files name no model."
    sections = []
    if inspection.comparison.overlaps:
        sections.append(_comparison(inspection.comparison))
    for number, file in enumerate(inspection.files, start=1):
        if isinstance(file, MaskFacts):
            body = _mask(file)
        elif isinstance(file, ScoresFacts):
            body = _scores(file)
        else:
            body = _patch(file)
        sections.append(f'<section id="file-{number}">\n{body}\n</section>')
    return page("Safety neurons: what the files hold", lead, [_contents(inspection), *sections])


def _contents(inspection: Inspection) -> str:
    entries = ['<a href="#overlap">overlap</a>'] if inspection.comparison.overlaps else []
    entries += [
        f'<a href="#file-{number}">{text(clean(file.name))}</a>'
        for number, file in enumerate(inspection.files, start=1)
    ]
    listed = "".join(f"<li>{entry}</li>" for entry in entries)
    return f'<nav aria-label="contents"><ul>{listed}</ul></nav>'


def _heading(name: str, what: str) -> str:
    return f'<h2>{text(clean(name))} <span class="soft">{text(what)}</span></h2>'


def _mask(facts: MaskFacts) -> str:
    share = facts.parameter_share
    of_model = "" if share is None else f" ({percent(share, 2)} of the model's)"
    language = "" if facts.language is None else f", language {facts.language}"
    return "\n".join(
        [
            _heading(facts.name, f"mask{language}"),
            paragraph(f"{facts.neurons:,} neurons, {facts.parameters:,} parameters{of_model}."),
            _shares(facts),
            _layer_map(facts.layers, {kind: facts.anatomy.size(kind) for kind in KINDS}),
            _provenance(facts.provenance),
        ]
    )


def _shares(facts: MaskFacts) -> str:
    rows = [row(kind, _share(group)) for kind, group in facts.kinds.items()]
    for number, (name, group) in enumerate(facts.thirds.items()):
        rows.append(row(f"{name}, {_span(group)}", _share(group), start=not number))
    return table(
        ("", "masked", "of", "share", "of the mask", "base rate", "lift"),
        rows,
        "Lift: the group's share of the mask over its share of all neurons; 1 is what a random "
        "mask has.",
    )


def _share(group: Share) -> list[str]:
    return [
        f"{group.count:,}",
        f"{group.total:,}",
        small_percent(group.share),
        "-" if group.mask_share is None else percent(group.mask_share),
        percent(group.base_rate),
        "-" if group.lift is None else f"{group.lift:.2f}×",
    ]


def _span(group: Share) -> str:
    first, last = group.layers or (0, 0)
    return f"layers {first} to {last}" if last > first else f"layer {first}"


def _layer_map(counts: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> str:
    """One table for each block of layers: a row a kind, a cell a layer with its neurons."""
    layers = len(next(iter(counts.values())))
    step = ceil(layers / _MOST_CELLS)
    starts = range(0, layers, step)
    shares = {
        (kind, start): sum(held[start : start + step])
        / (len(held[start : start + step]) * sizes[kind])
        for kind, held in counts.items()
        for start in starts
    }
    largest = max(shares.values())
    cells = "each layer" if step == 1 else f"every {step} layers"
    parts = ["<h3>By layer</h3>", paragraph(f"Neurons of each kind in {cells}. {_STRONGER}", True)]
    # Blocks of the same width, so that a cell is as wide in the last one.
    blocks = ceil(len(starts) / _LAYERS_ACROSS)
    across = ceil(len(starts) / blocks)
    for first in range(0, len(starts), across):
        block = starts[first : first + across]
        filler = "<td></td>" * (across - len(block))
        rows = []
        for kind, held in counts.items():
            drawn = []
            for start in block:
                inside = held[start : start + step]
                where = f"layer {start}" if step == 1 else f"layers {start} on"
                said = (
                    f"{kind}, {where}: {sum(inside):,} of {len(inside) * sizes[kind]:,} "
                    f"({small_percent(shares[kind, start])})"
                )
                level = doublings(shares[kind, start], largest)
                drawn.append(cell(f"{sum(inside)}" if sum(inside) else "·", level, said))
            rows.append(f'<tr><th scope="row">{text(kind)}</th>{"".join(drawn)}{filler}</tr>')
        heads = ["layer", *map(str, block), *[""] * (across - len(block))]
        parts.append(table(heads, rows, kind="map"))
    return "\n".join(parts)


def _comparison(found: Comparison) -> str:
    parts = [
        '<section id="overlap">\n<h2>Overlap of the masks</h2>',
        paragraph(
            "By chance: random masks with the same counts in every layer and kind, exact mean and "
            "± one standard deviation. A cell shows the IoU (neurons in both over neurons in "
            "either), then neurons in both, then what chance gives and how many times that the "
            "masks share. Colour follows the IoU."
        ),
        _matrix(found),
    ]
    return "\n".join([*parts, *(_shared(shared) for shared in found.shared), "</section>"])


def _matrix(found: Comparison) -> str:
    largest = max(overlap.iou for overlap in found.overlaps)
    rows = []
    for name in found.names:
        cells = []
        for other in found.names:
            if name == other:
                size = f"{found.neurons[name]:,}<small>neurons</small>"
                cells.append(f'<td class="self">{size}</td>')
            else:
                cells.append(_pair(found.of(name, other), largest))
        rows.append(f'<tr><th scope="row">{text(clean(name))}</th>{"".join(cells)}</tr>')
    return table(["", *map(clean, found.names)], rows, kind="matrix")


def _pair(overlap: Overlap, largest: float) -> str:
    small = (
        f"{overlap.intersection:,} in both",
        f"{_by_chance(overlap.chance)} by chance",
        f"{times(overlap.ratio)} chance",
    )
    said = f"{clean(overlap.first)} and {clean(overlap.second)}"
    return cell(f"{overlap.iou:.3f}", tenths(overlap.iou, largest), said, small)


def _shared(shared: Shared) -> str:
    masks = "both masks" if shared.of == 2 else f"all {shared.of} masks"
    if shared.at_least < shared.of:
        masks = f"at least {shared.at_least} of {shared.of} masks"
    parts = [f"<h3>{shared.neurons:,} neurons in {masks}</h3>"]
    rows = [row("all", (*_against(shared.neurons, shared.chance), "", ""))]
    for groups, chances in (
        (shared.kinds, shared.kind_chance),
        (shared.thirds, shared.third_chance),
    ):
        for number, (name, group) in enumerate(groups.items()):
            part = "-" if group.mask_share is None else percent(group.mask_share)
            label = f"{name}, {_span(group)}" if group.layers else name
            cells = (*_against(group.count, chances[name]), part, percent(group.base_rate))
            rows.append(row(label, cells, start=not number))
    heads = ("", "shared", "by chance", "times chance", "of the shared", "base rate")
    parts.append(table(heads, rows))
    if shared.top:
        best = [
            row(
                f"{neuron.kind} {neuron.index:,}",
                (str(neuron.layer), f"{neuron.masks} of {shared.of}", f"{neuron.score:.3g}"),
            )
            for neuron in shared.top
        ]
        caption = "Best by their smallest score in the masks that hold them."
        parts.append(table(("neuron", "layer", "masks", "smallest score"), best, caption))
    return "\n".join(parts)


def _against(count: int, chance: Chance) -> tuple[str, str, str]:
    return f"{count:,}", _by_chance(chance), times(chance.ratio(count))


def _by_chance(chance: Chance) -> str:
    return give_or_take(chance.expected, chance.deviation)


def _scores(facts: ScoresFacts) -> str:
    smallest = [
        row(kind, [f"{value:.3g}" for value in values]) for kind, values in facts.quantiles.items()
    ]
    top = [
        row(
            f"{neuron.kind} {neuron.index:,}",
            (
                str(neuron.layer),
                f"{neuron.typical_rank:.1f}",
                f"{neuron.worst_rank:,}",
                f"{neuron.minimum:.3g}",
            ),
        )
        for neuron in facts.top
    ]
    return "\n".join(
        [
            _heading(facts.name, "scores"),
            paragraph(
                f"{facts.prompts:,} prompts, {facts.neurons:,} neurons in {facts.places:,} places "
                f"(layer and kind) of {facts.anatomy.layers} layers."
            ),
            table(
                ("kind", *map(quantile_name, QUANTILES)),
                smallest,
                "Smallest importance over the prompts: its quantiles among the neurons.",
            ),
            table(
                ("neuron", "layer", "typical rank", "worst rank", "smallest importance"),
                top,
                "Most important by mean log-rank; rank 0 is the first of a layer and kind.",
            ),
            _provenance(facts.provenance),
        ]
    )


def _patch(facts: PatchFacts) -> str:
    parts = [_heading(facts.name, "patch")]
    parts.append(_report(facts.report) if facts.report is not None else "<p>No report.json.</p>")
    parts.append(_provenance(facts.provenance))
    parts.append("<p>No mask.safetensors.</p>" if facts.mask is None else _mask(facts.mask))
    return "\n".join(parts)


def _report(report: Mapping[str, Any]) -> str:
    before, after = report.get("before"), report.get("after")
    if not isinstance(before, dict) or not isinstance(after, dict):
        return "<p>The report holds no figures before and after.</p>"
    rows = [
        row(label, [_figure(metric, measured.get(metric)) for measured in (before, after)])
        for metric, label in LABELS.items()
        if metric in before or metric in after
    ]
    return table(("", "before", "after"), rows)


def _figure(metric: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.2f}" if metric == "perplexity" else percent(value)


def _provenance(provenance: Mapping[str, Any]) -> str:
    rows = [row(name, [words]) for name, words in provenance_lines(provenance)]
    if not rows:
        return paragraph("The file does not say how it was made.", True)
    return "<h3>How it was made</h3>\n" + table((), rows, kind="facts")
