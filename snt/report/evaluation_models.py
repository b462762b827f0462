"""An evaluation for the terminal: every metric, and under it every model, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from snt.evaluation.suites import family, variant
from snt.report.evaluation_figures import (
    change_of,
    change_words,
    detectable,
    gate_cells,
    is_rate,
    metrics_of,
    models_of,
    plain,
)
from snt.report.figures import interval, metric_label, p_value, percent, signed_percent
from snt.report.provenance import clean

_WIDTH = 80
_NAME = 20  # columns of a model's name; more are cut
_FIGURES: Final[Mapping[str, Any]] = {"justify": "right", "no_wrap": True}
_GROUPS = 12  # templates or behaviours that the table still lists; the report has them all


def models_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """The report of `snt eval --json` as tables: metrics by model, seeds, held out, gates."""
    parts: list[RenderableType] = [Constrain(part, _WIDTH) for part in _metrics(report)]
    parts += [Constrain(_seeds(group), _WIDTH) for group in report.get("seeds", ())]
    parts += [*held_out_lines(report), *gate_lines(report)]
    return parts


def held_out_lines(report: Mapping[str, Any]) -> list[str]:
    """What the prompts were compared with, and what was found."""
    found = report.get("held_out")
    if not found or not (found["compared_with"] or found["not_compared"]):
        return []
    lines = []
    if found["compared_with"]:
        counts = [
            f"{entry['near_duplicates']} of {entry['n']} prompts of {clean(entry['corpus'])}"
            for entry in found["metrics"].values()
            if entry["near_duplicates"]
        ]
        told = f"near-duplicates: {'; '.join(counts)}" if counts else "no near-duplicates"
        sources = ", ".join(map(clean, found["compared_with"]))
        lines.append(f"held out: {told} of what the model was made from ({sources})")
    if found["not_compared"]:
        names = ", ".join(map(clean, found["not_compared"]))
        lines.append(f"not compared, for their texts are not at hand (--check-against): {names}")
    return lines


def gate_lines(report: Mapping[str, Any]) -> list[str]:
    """One line a gate."""
    lines = []
    for gate in report.get("gates", ()):
        model, value, bounds, answer = gate_cells(gate)
        lines.append(f"gate {gate['gate']!r} {answer}: {model} {value}, 95% {bounds}")
    return lines


def _metrics(report: Mapping[str, Any]) -> list[RenderableType]:
    """A line a metric where there is one model; else each metric's name above its models."""
    models = models_of(report)
    second = _second_judge(models)
    changes = any("differences" in model for model in models)
    heads = ["", "value", "95%", *(["2nd"] if second else [])]
    heads += ["change", "95%", "p"] if changes else []
    heads.append("least")
    found: list[tuple[str, list[list[str]]]] = []
    for metric in metrics_of(models):
        held = [(model, model["metrics"][metric]) for model in models if metric in model["metrics"]]
        told = f"{metric_label(metric)} ({held[0][1]['n']})"
        lines = []
        for model, entry in held:
            name = f"  {_cut(model['name'])}" if len(models) > 1 else told
            lines += _lines(name, entry, change_of(model, metric), second, changes)
        found.append((told, lines))
    # One width a column for all metrics; the heads stand once, at the top.
    rows = [heads, *(row for _, lines in found for row in lines)]
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(len(heads))]
    # The names give way where figures are long.
    widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - len(widths) + 1)
    parts: list[RenderableType] = [_grid([heads], widths, "bold")]
    for told, lines in found:
        parts += [Text(told, style="bold")] if len(models) > 1 else []
        parts.append(_grid(lines, widths))
    return [*parts, Text(f"\n{_caption(models, changes, second)}\n", style="italic dim")]


def _lines(
    name: str,
    entry: Mapping[str, Any],
    change: Mapping[str, Any] | None,
    second: str | None,
    changes: bool,
) -> list[list[str]]:
    """One model's line of one metric, and one of each of its groups."""
    value = percent(entry["value"]) if is_rate(entry) else plain(entry["value"])
    cells = [name, value, _bounds(entry)]
    cells += [_judged(entry, second)] if second else []
    cells += _change(change) if changes else []
    groups = entry.get("groups", {})
    return [
        [*cells, detectable(entry, change)],
        *(
            [f"    {clean(name)[:28]} ({part['n']})", percent(part["value"]), _bounds(part)]
            for name, part in (groups.items() if len(groups) <= _GROUPS else ())
        ),
    ]


def _grid(rows: Sequence[Sequence[str]], widths: Sequence[int], style: str = "") -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    for at, width in enumerate(widths):
        grid.add_column(width=width, **_FIGURES if at else {"overflow": "fold"})
    for row in rows:
        # Names are not markup.
        grid.add_row(*(Text(cell, style=style) for cell in row))
    return grid


def _change(change: Mapping[str, Any] | None) -> list[str]:
    if change is None:
        return ["", "", ""]
    return [*change_words(change), p_value(change["p"]) if "p" in change else ""]


def _bounds(entry: Mapping[str, Any]) -> str:
    if not entry.get("interval"):
        return ""
    low, high = entry["interval"]
    return interval((low, high)) if is_rate(entry) else f"{plain(low)}–{plain(high)}"


def _second_judge(models: Sequence[Mapping[str, Any]]) -> str | None:
    for model in models:
        for entry in model["metrics"].values():
            others = [name for name in entry.get("judges", ()) if name != entry.get("judge")]
            if others:
                return str(others[0])
    return None


def _judged(entry: Mapping[str, Any], judge: str) -> str:
    found = entry.get("judges", {}).get(judge)
    return "" if found is None else percent(found["value"])


def _caption(models: Sequence[Mapping[str, Any]], changes: bool, second: str | None) -> str:
    entries = [entry for model in models for entry in model["metrics"].values()]
    named = [f"{_cut(model['name'])}: {clean(str(model['model']))}" for model in models]
    lines = ["in brackets: prompts or texts"]
    judge = next((entry["judge"] for entry in entries if "judge" in entry), None)
    if judge is not None:
        lines[0] += f"; refusals by the judge {judge!r}; rates: Wilson"
    if changes:
        lines.append("change: in points, perplexity's relative; paired bootstrap; p: exact McNemar")
        grouped = {
            metric_label(metric): change["clusters"]
            for model in models
            for metric, change in model.get("differences", {}).items()
            if change.get("clusters", 0) < change.get("n", 0)
        }
        told = ", ".join(f"{label} ({count})" for label, count in grouped.items())
        lines += [f"by clusters of near-duplicate prompts: {told}"] if told else []
    lines += _beside_english(entries, models)
    lines.append("least: the smallest change that so many prompts would show, 8 times in 10")
    agreed = next((entry["agreement"] for entry in reversed(entries) if "agreement" in entry), None)
    if second is not None:
        told = "" if agreed is None else f"; the two agree on {percent(agreed['share'])}"
        lines.append(f"2nd: by the judge {second!r}{told}")
    # The names' own lines: which model each is.
    return "\n".join([*lines, *named])


def _beside_english(
    entries: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Of the last model, a line a family: each language minus English, prompt by prompt."""
    found: dict[str, list[str]] = {}
    for metric, entry in models[-1]["metrics"].items() if entries else ():
        change = entry.get("beside_english")
        if change is not None:
            said = f"{variant(metric)} {signed_percent(change['difference'])}"
            found.setdefault(family(metric), []).append(f"{said} (p {p_value(change['p'])})")
    return [
        f"{metric_label(name)}, beside English on the same prompts: {', '.join(said)}"
        for name, said in found.items()
    ]


def _seeds(group: Mapping[str, Any]) -> Table:
    table = _table("seeds of one setting", "mean", "least to most", "each", title="over the seeds")
    named = [f"{_cut(name)}: seed {seed}" for name, seed in group["seeds"].items()]
    for metric, spread in group["metrics"].items():
        shown = plain if metric == "perplexity" else percent
        table.add_row(
            metric_label(metric),
            shown(spread["mean"]),
            f"{shown(spread['min'])} to {shown(spread['max'])}",
            ", ".join(shown(value) for value in spread["values"].values()),
        )
    table.columns[-1].no_wrap = False
    table.columns[-1].max_width = 36
    table.caption = "; ".join(named)
    return table


def _table(first: str, *others: str, title: str | None = None) -> Table:
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    # The one column that gives way where figures are long.
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cut(name: str) -> str:
    plain = clean(name)
    return plain if len(plain) <= _NAME else plain[: _NAME - 1] + "…"
