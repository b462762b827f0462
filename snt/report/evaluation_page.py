"""An evaluation as one HTML page that needs no other file: picture, figures, replies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from snt.evaluation.completions import Completion
from snt.report import evaluation_chart, evaluation_replies
from snt.report.evaluation_chart import Point, chart, ink
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
from snt.report.evaluation_replies import replies_section
from snt.report.figures import LABELS, interval, metric_label, p_value, percent
from snt.report.page import page, paragraph, row, table, text
from snt.report.provenance import clean, provenance_lines

_UP = "harmful requests refused"
_PANELS = {
    "over_refusal": "safe look-alikes refused",
    "harmless_refusal": "harmless requests refused",
}
_SETTINGS = ("backend", "dtype", "template", "system_prompt", "generation", "fingerprint", "patch",
             "deactivated")  # fmt: skip
_NOTES = (
    "Intervals are 95%: Wilson for rates; by resampling texts for perplexity; by resampling "
    "prompts in pairs for changes, which are in points, and relative for perplexity. p is exact "
    "McNemar. Prompts that are near-duplicates of each other count as one in both.",
    "Min. diff. is the smallest difference that these prompts would show in 80% of repetitions: of "
    "a change by McNemar, beside as many outcomes that cancel out as did here; of a rate alone by "
    "Fisher, from as many other prompts.",
)
_STYLE = """
ol.models { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; }
.bad { color: #b3261e; font-weight: 600; }
@media (prefers-color-scheme: dark) { .bad { color: #ff8a80; } }
"""


def evaluation_page(report: Mapping[str, Any], replies: Sequence[Sequence[Completion]]) -> str:
    """The page of the report of `snt eval --json`.

    `replies` are those of the models in the order of `models_of`. Whatever stands in them is shown
    as text and does nothing.
    """
    models = models_of(report)
    names = [model["name"] for model in models]
    listed = "".join(
        f'<li><span class="key k{ink(n)}">{n}</span> {text(clean(model["name"]))} '
        f'<span class="soft">{text(clean(_what(model)))}</span></li>'
        for n, model in enumerate(models, start=1)
    )
    sections = [
        f'<ol class="models" aria-label="models">{listed}</ol>',
        _gates(report.get("gates", ())),
        _charts(models),
        *(_metric(metric, models) for metric in metrics_of(models)),
        *(paragraph(note, True) for note in _NOTES),
        _seeds(report.get("seeds", ())),
        _held_out(report.get("held_out")),
        _made(models),
        replies_section([clean(name) for name in names], replies, LABELS),
    ]
    lead = f"Safety beside over-refusal and language, {_count(len(models), 'model')}."
    style = evaluation_chart.STYLE + evaluation_replies.STYLE + _STYLE
    return page("Evaluation", lead, filter(None, sections), style)


def _what(model: Mapping[str, Any]) -> str:
    return "" if model["name"].endswith(str(model["model"])) else str(model["model"])


def _charts(models: Sequence[Mapping[str, Any]]) -> str:
    panels = []
    for metric, across in _PANELS.items():
        points = [
            Point(n, clean(model["name"]), _value(side), _refused(harm))
            for n, model in enumerate(models, start=1)
            if (side := model["metrics"].get(metric)) is not None
            and (harm := model["metrics"].get("non_refusal")) is not None
        ]
        if points:
            panels.append(chart(points, across, _UP))
    if not panels:
        return ""
    note = "Best is the upper left. Crosses are 95% intervals (Wilson) in both directions."
    return (
        '<section id="picture">\n<h2>Safety against over-refusal</h2>\n'
        f'{paragraph(note, True)}\n<div class="charts">{"".join(panels)}</div>\n</section>'
    )


def _value(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    low, high = entry["interval"]
    return entry["value"], low, high


def _refused(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    value, low, high = _value(entry)
    return 1 - value, 1 - high, 1 - low


def _metric(metric: str, models: Sequence[Mapping[str, Any]]) -> str:
    entries = [model["metrics"][metric] for model in models if metric in model["metrics"]]
    rates = is_rate(entries[0])
    judges = list(dict.fromkeys(name for entry in entries for name in _judges(entry)))
    rows = []
    for model in models:
        entry = model["metrics"].get(metric)
        if entry is None:
            continue
        change = change_of(model, metric)
        cells = [
            percent(entry["value"]) if rates else plain(entry["value"]),
            _bounds(entry, rates),
            f"{entry['n']:,}",
            *(_judged(entry, judge) for judge in judges[1:]),
            *_changed(change),
            detectable(entry, change),
        ]
        rows.append(row(clean(model["name"]), cells))
    heads = ["", "value", "95%", "n", *(f"by {clean(judge)}" for judge in judges[1:]), "change"]
    corpus = entries[0].get("corpus", {}).get("name", "")
    return "\n".join(
        [
            f'<section id="metric-{text(clean(metric))}">',
            f"<h2>{text(metric_label(metric))} "
            f'<span class="soft">{text(clean(str(corpus)))}</span></h2>',
            table([*heads, "95%", "p", "min. diff."], rows, _caption(judges, entries)),
            _labels(metric, models),
            "</section>",
        ]
    )


def _caption(judges: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> str:
    if not judges:
        return ""
    agreed = next((entry["agreement"] for entry in entries[-1:] if "agreement" in entry), None)
    told = "" if agreed is None else f"; they agree on {percent(agreed['share'])} of the replies"
    return f"Judged by {', '.join(map(clean, judges))}{told}."


def _judges(entry: Mapping[str, Any]) -> list[str]:
    named = [str(entry["judge"])] if "judge" in entry else []
    return [*named, *(name for name in entry.get("judges", ()) if name not in named)]


def _judged(entry: Mapping[str, Any], judge: str) -> str:
    found = entry.get("judges", {}).get(judge)
    return "" if found is None else f"{percent(found['value'])} ({interval(found['interval'])})"


def _bounds(entry: Mapping[str, Any], rates: bool) -> str:
    if not entry.get("interval"):
        return ""
    low, high = entry["interval"]
    return interval((low, high)) if rates else f"{plain(low)}–{plain(high)}"


def _changed(change: Mapping[str, Any] | None) -> list[str]:
    if change is None:
        return ["", "", ""]
    value, bounds = change_words(change)
    clusters = change.get("clusters", change.get("n"))
    grouped = "" if clusters == change.get("n") else f" ({clusters:,} clusters)"
    return [value, f"{bounds}%{grouped}", p_value(change["p"]) if "p" in change else ""]


def _labels(metric: str, models: Sequence[Mapping[str, Any]]) -> str:
    held = [(m["name"], m["metrics"].get(metric, {}).get("labels")) for m in models]
    kinds = sorted({kind for _, labels in held if labels for kind in labels})
    if not kinds:
        return ""
    rows = [
        row(clean(name), [f"{labels.get(kind, 0):,}" for kind in kinds])
        for name, labels in held
        if labels
    ]
    return table(["replies labelled", *kinds], rows)


def _seeds(groups: Iterable[Mapping[str, Any]]) -> str:
    parts = []
    for group in groups:
        seeds = group["seeds"]
        heads = ["", "mean", "least", "most", *(f"{clean(n)} ({s})" for n, s in seeds.items())]
        rows = []
        for metric, spread in group["metrics"].items():
            as_text = plain if metric == "perplexity" else percent
            figures = (spread["mean"], spread["min"], spread["max"], *spread["values"].values())
            rows.append(row(metric_label(metric), [as_text(value) for value in figures]))
        note = "Models that were made alike but for their seeds, which stand in brackets."
        parts.append(table(heads, rows, note))
    return f'<section id="seeds">\n<h2>Seeds</h2>\n{"".join(parts)}\n</section>' if parts else ""


def _held_out(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rows = [
        row(
            metric_label(metric),
            [
                clean(entry["corpus"]),
                f"{entry['n']:,}",
                f"{entry['clusters']:,}",
                f"{entry['near_duplicates']:,} ({percent(entry['share'])})",
            ],
        )
        for metric, entry in found["metrics"].items()
    ]
    compared = ", ".join(map(clean, found["compared_with"])) or "no corpus: none is named"
    missing = ", ".join(map(clean, found["not_compared"]))
    parts = [
        '<section id="held-out">\n<h2>Held out</h2>',
        paragraph(f"Compared with what the models were made from: {compared}."),
    ]
    if missing:
        parts.append(
            f'<p class="bad">Not compared, for their texts were not at hand: {text(missing)}.</p>'
        )
    if found["forced"]:
        parts.append(
            f'<p class="bad">More than {percent(found["most"], 0)} are near-duplicates; measured '
            "all the same, as asked.</p>"
        )
    note = (
        f"Near-duplicates share {percent(found['threshold'], 0)} of their three-character pieces "
        "(Jaccard). Clusters: groups of them within the corpus."
    )
    heads = ["", "corpus", "prompts", "clusters", "near-duplicates of a source"]
    return "\n".join([*parts, table(heads, rows, note), "</section>"])


def _gates(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return ""
    rows = [row(clean(result["gate"]), gate_cells(result)) for result in results]
    heads = ["fail if", "model", "value", "95%", ""]
    return f'<section id="gates">\n{table(heads, rows)}\n</section>'


def _made(models: Sequence[Mapping[str, Any]]) -> str:
    told = [{key: model[key] for key in _SETTINGS if key in model} for model in models]
    alike = {
        key: value
        for key, value in told[0].items()
        if all(key in other and other[key] == value for other in told)
    }
    parts = [_facts(alike)]
    for model, held in zip(models, told, strict=True):
        own = {key: value for key, value in held.items() if key not in alike}
        if any(value is not None for value in own.values()):
            parts += [f"<h3>{text(clean(model['name']))}</h3>", _facts(own)]
    body = "\n".join(filter(None, parts))
    return f'<section id="settings">\n<h2>How it was measured</h2>\n{body}\n</section>'


def _facts(told: Mapping[str, Any]) -> str:
    facts = [
        f'<tr><th scope="row">{text(name)}</th><td>{text(words)}</td></tr>'
        for name, words in provenance_lines(told)
    ]
    return table((), facts, kind="facts") if facts else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
