"""What is in masks, scores and patches, drawn for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from snt.anatomy import KINDS
from snt.file_facts import QUANTILES, MaskFacts, PatchFacts, ScoresFacts, Share
from snt.inspection import Inspection
from snt.report.figures import LABELS, percent, quantile_name, small_percent
from snt.report.layer_map import LayerMap
from snt.report.overlap import comparison
from snt.report.provenance import clean, model_name, provenance_lines
from snt.report.tables import line, rule, table


def render(inspection: Inspection) -> RenderableType:
    """All files one below the other, then the overlaps of the masks."""
    parts: list[RenderableType] = []
    for file in inspection.files:
        if isinstance(file, MaskFacts):
            parts += _mask(file)
        elif isinstance(file, ScoresFacts):
            parts += _scores(file)
        else:
            parts += _patch(file)
    parts += comparison(inspection.comparison)
    return Group(*parts)


def _mask(facts: MaskFacts) -> list[RenderableType]:
    share = facts.parameter_share
    of_model = "" if share is None else f" ({percent(share, 2)} of the model's)"
    summary = f"{facts.neurons:,} neurons, {facts.parameters:,} parameters{of_model}"
    sizes = {kind: facts.anatomy.size(kind) for kind in KINDS}
    return [
        _heading(facts.name, "mask", facts.provenance, facts.language),
        line(summary),
        _shares(facts),
        LayerMap(facts.layers, sizes),
        Text(""),
        _provenance(facts.provenance),
    ]


def _shares(facts: MaskFacts) -> Table:
    made = table("", "masked", "of", "share", "of the mask", "base rate", "lift")
    for kind, group in facts.kinds.items():
        made.add_row(Text(kind, style="bold"), *_share(group), end_section=kind == KINDS[-1])
    for name, group in facts.thirds.items():
        first, last = group.layers or (0, 0)
        span = f" {first}-{last}" if last > first else f" {first}"
        made.add_row(Text(name, style="bold").append(span, style="not bold dim"), *_share(group))
    return made


def _share(group: Share) -> list[RenderableType]:
    lift: RenderableType = Text("-", style="dim")
    if group.lift is not None:
        style = "bold green" if group.lift >= 1.5 else "dim" if group.lift < 2 / 3 else ""
        lift = Text(f"{group.lift:.2f}×", style=style)
    return [
        f"{group.count:,}",
        Text(f"{group.total:,}", style="dim"),
        small_percent(group.share),
        "-" if group.mask_share is None else percent(group.mask_share),
        Text(percent(group.base_rate), style="dim"),
        lift,
    ]


def _scores(facts: ScoresFacts) -> list[RenderableType]:
    smallest = table("kind", *(quantile_name(q) for q in QUANTILES))
    for kind, values in facts.quantiles.items():
        smallest.add_row(Text(kind, style="bold"), *(f"{value:.3g}" for value in values))
    top = table("layer", "kind", "neuron", "typical rank", "worst rank", "smallest importance")
    for neuron in facts.top:
        ranks = (f"{neuron.typical_rank:.1f}", f"{neuron.worst_rank:,}")
        top.add_row(
            str(neuron.layer), neuron.kind, f"{neuron.index:,}", *ranks, f"{neuron.minimum:.3g}"
        )
    return [
        _heading(facts.name, "scores", facts.provenance),
        line(
            f"{facts.prompts:,} prompts, {facts.neurons:,} neurons in {facts.places:,} places "
            f"(layer and kind) of {facts.anatomy.layers} layers"
        ),
        Text(""),
        line("smallest importance over the prompts: its quantiles among the neurons", "dim"),
        smallest,
        line("most important by mean log-rank; rank 0 is the first of a layer and kind", "dim"),
        top,
        _provenance(facts.provenance),
    ]


def _patch(facts: PatchFacts) -> list[RenderableType]:
    parts: list[RenderableType] = [_heading(facts.name, "patch", facts.provenance)]
    if facts.report is None:
        parts.append(line("no report.json beside it", "yellow"))
    else:
        parts += _report(facts.report)
    parts.append(_provenance(facts.provenance))
    if facts.mask is None:
        parts.append(line("no mask.safetensors beside it", "yellow"))
    else:
        parts += _mask(facts.mask)
    return parts


def _report(report: Mapping[str, Any]) -> list[RenderableType]:
    said = []
    steps, changed, masked, outside = (
        report[key] if type(report.get(key)) is int else None
        for key in ("steps", "changed", "masked", "outside_changed")
    )
    if steps is not None:
        said.append(f"{steps:,} steps")
    if changed is not None and masked is not None:
        said.append(f"{changed:,} of {masked:,} masked entries changed")
    if isinstance(report.get("max_abs_delta"), float):
        said.append(f"largest |Δ| {report['max_abs_delta']:.2g}")
    if outside is not None:
        said.append(f"{outside:,} changed outside the mask")
    parts: list[RenderableType] = [line(", ".join(said))] if said else []
    before, after = report.get("before"), report.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        made = table("", "before", "after")
        for metric in [m for m in LABELS if m in before or m in after]:
            values = (_figure(metric, measured.get(metric)) for measured in (before, after))
            made.add_row(LABELS[metric], *values)
        if made.row_count:
            parts.append(made)
    return parts


def _figure(metric: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.2f}" if metric == "perplexity" else percent(value)


def _heading(
    name: str, what: str, provenance: Mapping[str, Any], language: str | None = None
) -> RenderableType:
    title = Text(clean(name), style="bold").append(f"  {what}", style="not bold")
    named = model_name(provenance)
    if named is not None:
        title.append(f" of {named}", style="not bold")
    if language is not None:
        title.append(f", language {language}", style="not bold")
    return rule(title)


def _provenance(provenance: Mapping[str, Any]) -> RenderableType:
    """How the file was made, a line a fact."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, words in provenance_lines(provenance):
        grid.add_row(Text(name), Text(words))
    if not grid.row_count:
        return line("the file does not say how it was made", "dim")
    return Padding(grid, (0, 0, 0, 1))
