"""What is in masks, scores and patches, drawn for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from snt.anatomy import KINDS
from snt.file_facts import QUANTILES, MaskFacts, Overlap, PatchFacts, ScoresFacts, Share
from snt.inspection import Inspection
from snt.report.figures import LABELS, percent
from snt.report.layer_map import LayerMap

# What a reader asks first, in this order; other keys follow by name.
_ORDER = (
    *("model", "fingerprint", "importance", "selection", "combine", "consistency", "kinds"),
    *("corpora", "data", "retain", "prompts_dropped", "template", "system_prompt", "backend"),
    *("dtype", "seed", "snt", "parents"),
)
_NAMES = ("id", "name", "rule")
_DIGEST = re.compile(r"[0-9a-f]{40,}")
_LONGEST = 200
_DEEPEST = 3


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
    if inspection.overlaps:
        parts += _overlaps(inspection.overlaps)
    return Group(*parts)


def _mask(facts: MaskFacts) -> list[RenderableType]:
    share = facts.parameter_share
    of_model = "" if share is None else f" ({percent(share, 2)} of the model's)"
    summary = f"{facts.neurons:,} neurons, {facts.parameters:,} parameters{of_model}"
    sizes = {kind: facts.anatomy.size(kind) for kind in KINDS}
    return [
        _heading(facts.name, "mask", facts.provenance),
        _line(summary),
        _shares(facts),
        LayerMap(facts.layers, sizes),
        Text(""),
        _provenance(facts.provenance),
    ]


def _shares(facts: MaskFacts) -> Table:
    table = _table("", "masked", "of", "share", "of the mask", "base rate", "lift")
    for kind, group in facts.kinds.items():
        table.add_row(Text(kind, style="bold"), *_share(group), end_section=kind == KINDS[-1])
    for name, group in facts.thirds.items():
        first, last = group.layers or (0, 0)
        span = f" {first}-{last}" if last > first else f" {first}"
        table.add_row(Text(name, style="bold").append(span, style="not bold dim"), *_share(group))
    return table


def _share(group: Share) -> list[RenderableType]:
    lift: RenderableType = Text("-", style="dim")
    if group.lift is not None:
        style = "bold green" if group.lift >= 1.5 else "dim" if group.lift < 2 / 3 else ""
        lift = Text(f"{group.lift:.2f}×", style=style)
    return [
        f"{group.count:,}",
        Text(f"{group.total:,}", style="dim"),
        _small_percent(group.share),
        "-" if group.mask_share is None else percent(group.mask_share),
        Text(percent(group.base_rate), style="dim"),
        lift,
    ]


def _scores(facts: ScoresFacts) -> list[RenderableType]:
    smallest = _table("kind", *(_quantile_name(q) for q in QUANTILES))
    for kind, values in facts.quantiles.items():
        smallest.add_row(Text(kind, style="bold"), *(f"{value:.3g}" for value in values))
    top = _table("layer", "kind", "neuron", "typical rank", "worst rank", "smallest importance")
    for neuron in facts.top:
        ranks = (f"{neuron.typical_rank:.1f}", f"{neuron.worst_rank:,}")
        top.add_row(
            str(neuron.layer), neuron.kind, f"{neuron.index:,}", *ranks, f"{neuron.minimum:.3g}"
        )
    return [
        _heading(facts.name, "scores", facts.provenance),
        _line(
            f"{facts.prompts:,} prompts, {facts.neurons:,} neurons in {facts.places:,} places "
            f"(layer and kind) of {facts.anatomy.layers} layers"
        ),
        Text(""),
        _line("smallest importance over the prompts: its quantiles among the neurons", "dim"),
        smallest,
        _line("most important by mean log-rank; rank 0 is the first of a layer and kind", "dim"),
        top,
        _provenance(facts.provenance),
    ]


def _patch(facts: PatchFacts) -> list[RenderableType]:
    parts: list[RenderableType] = [_heading(facts.name, "patch", facts.provenance)]
    if facts.report is None:
        parts.append(_line("no report.json beside it", "yellow"))
    else:
        parts += _report(facts.report)
    parts.append(_provenance(facts.provenance))
    if facts.mask is None:
        parts.append(_line("no mask.safetensors beside it", "yellow"))
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
    parts: list[RenderableType] = [_line(", ".join(said))] if said else []
    before, after = report.get("before"), report.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        table = _table("", "before", "after")
        for metric in [m for m in LABELS if m in before or m in after]:
            values = (_figure(metric, measured.get(metric)) for measured in (before, after))
            table.add_row(LABELS[metric], *values)
        if table.row_count:
            parts.append(table)
    return parts


def _figure(metric: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.2f}" if metric == "perplexity" else percent(value)


def _overlaps(overlaps: Iterable[Overlap]) -> list[RenderableType]:
    table = _table("masks", "in both", "by chance", "times chance", "IoU")
    for overlap in overlaps:
        table.add_row(
            Text(f"{_clean(overlap.first)}\n{_clean(overlap.second)}", overflow="fold"),
            f"{overlap.intersection:,}",
            Text(f"{overlap.expected:,.1f}", style="dim"),
            "-" if overlap.ratio is None else f"{overlap.ratio:,.1f}×",
            f"{overlap.iou:.3f}",
            end_section=True,
        )
    note = "by chance: random masks with the same counts in every layer and kind"
    return [_rule(Text("overlap of the masks", style="bold")), table, _line(note, "dim")]


def _heading(name: str, what: str, provenance: Mapping[str, Any]) -> RenderableType:
    model = provenance.get("model")
    named = model.get("id") if isinstance(model, dict) else None
    title = Text(_clean(name), style="bold").append(f"  {what}", style="not bold")
    if isinstance(named, str):
        title.append(f" of {_clean(named)}", style="not bold")
    return _rule(title)


def _rule(title: Text) -> RenderableType:
    return Padding(Rule(title, align="left", style="dim"), (1, 0, 0, 0))


def _line(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), (0, 0, 0, 1))


def _table(first: str, *others: str) -> Table:
    """A table whose first column is words and whose others are figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in others:
        # Too narrow a terminal gets two lines for a figure, never a part of it.
        table.add_column(name, justify="right", overflow="fold")
    return table


def _small_percent(fraction: float) -> str:
    """Two digits, and no zero for what is there."""
    return "<0.01%" if 0 < fraction < 5e-5 else percent(fraction, 2)


def _quantile_name(fraction: float) -> str:
    return {0.0: "lowest", 0.5: "median", 1.0: "highest"}.get(fraction, percent(fraction, 0))


def _provenance(provenance: Mapping[str, Any]) -> RenderableType:
    """How the file was made, a line a fact; whatever stands in it is taken as plain text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    known = [key for key in _ORDER if key in provenance]
    for key in [*known, *sorted(provenance.keys() - set(known))]:
        value = provenance[key]
        if key == "parents" and isinstance(value, list):
            text = "\n".join(_parent(parent) for parent in value)
        else:
            text = _plain(value)
        grid.add_row(Text(_clean(key).replace("_", " ")), Text(text))
    if not grid.row_count:
        return _line("the file does not say how it was made", "dim")
    return Padding(grid, (0, 0, 0, 1))


def _parent(provenance: Any) -> str:
    """The mask that a mask was made of, by its selection and its corpora."""
    if not isinstance(provenance, dict):
        return _plain(provenance)
    told = [_plain(provenance[key]) for key in ("selection", "combine") if key in provenance]
    corpora = provenance.get("corpora")
    held = sorted(corpora.items(), key=_first) if isinstance(corpora, dict) else []
    named = [_plain(c["name"]) for _, c in held if isinstance(c, dict) and "name" in c]
    return ", ".join([*told, *([" against ".join(named)] if named else [])]) or "a mask"


def _plain(value: Any, depth: int = 0) -> str:
    """A value of the metadata in words; nothing deep, long or unprintable."""
    if isinstance(value, dict):
        if depth == _DEEPEST:
            return "…"
        held = sorted(((k, v) for k, v in value.items() if v is not None), key=_first)
        nested = depth == 0 and held and all(isinstance(item, dict) for _, item in held)
        parts = [_entry(key, item, depth) for key, item in held]
        return ("\n" if nested else ", ").join(parts)
    if isinstance(value, list):
        lines = depth == 0 and all(isinstance(item, dict) for item in value)
        items = [_plain(item, depth + 1) for item in value] if depth < _DEEPEST else ["…"]
        return ("\n" if lines else ", ").join(items) or "none"
    if value is None:
        return "none"
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}…"
    return _clean(str(value))


def _first(item: tuple[str, Any]) -> tuple[bool, str]:
    """Sorts what names a thing before what describes it."""
    return item[0] not in (*_NAMES, "corpus"), item[0]


def _entry(key: str, value: Any, depth: int) -> str:
    text = _plain(value, depth + 1)
    if key in _NAMES:
        return text
    if key in ("rows", "parameters") and type(value) is int:
        return f"{value:,} {key}"
    return f"{_clean(key).replace('_', ' ')}{':' if isinstance(value, dict) else ''} {text}"


def _clean(text: str) -> str:
    """Printable characters alone: an escape sequence in a file must not reach the terminal."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_LONGEST])
    return shown + ("…" if len(text) > _LONGEST else "")
