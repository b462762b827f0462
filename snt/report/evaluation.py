"""Measurements as tables: rates with intervals, and before beside after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from snt.evaluation.evaluate import Evaluation
from snt.evaluation.measurement import RATES, Measurement, compare, perplexity_change
from snt.report.figures import LABELS, interval, p_value, percent, signed_percent


def measurement_table(measured: Measurement, title: str) -> Table:
    """Every metric of one model with its interval."""
    table = _table(title, measured)
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("n", justify="right")
    for metric, rate in measured.rates.items():
        bounds = interval((rate.low, rate.high))
        table.add_row(LABELS[metric], percent(rate.rate), bounds, str(rate.n))
    if measured.perplexity is not None:
        texts = str(len(measured.perplexity.tokens))
        table.add_row(LABELS["perplexity"], f"{measured.perplexity.value:.2f}", "", texts)
    return table


def comparison_table(before: Measurement, after: Measurement, title: str, names: Any) -> Table:
    """Every metric of two models on the same prompts, the paired difference and its p-value."""
    table = _table(title, after)
    table.add_column(names[0], justify="right")
    table.add_column(names[1], justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("change", justify="right")
    table.add_column("p", justify="right")
    table.add_column("n", justify="right")
    first, second = before.rates, after.rates
    for metric, difference in compare(before, after).items():
        table.add_row(
            LABELS[metric],
            percent(first[metric].rate),
            percent(second[metric].rate),
            interval((second[metric].low, second[metric].high)),
            signed_percent(difference.difference),
            p_value(difference.p),
            str(difference.n),
        )
    change = perplexity_change(before, after)
    if change is not None and before.perplexity is not None and after.perplexity is not None:
        relative, low, high = change
        table.add_row(
            LABELS["perplexity"],
            f"{before.perplexity.value:.2f}",
            f"{after.perplexity.value:.2f}",
            "",
            f"{signed_percent(relative)}",
            f"{100 * low:+.1f} to {100 * high:+.1f}%",
            str(len(after.perplexity.tokens)),
        )
    return table


def evaluation_table(found: Evaluation) -> list[RenderableType]:
    """What `snt eval` prints."""
    where = f"replies and report: {found.directory}"
    if found.baseline is None:
        return [measurement_table(found.measured, found.model), where]
    title = f"{found.model} beside {found.baseline_model}"
    names = ("baseline", "model")
    return [comparison_table(found.baseline, found.measured, title, names), where]


def labels_table(report: Mapping[str, Any]) -> Table:
    """How often each label was given to saved replies."""
    table = Table("label", "replies", "share", title=f"{report['n']} replies, {report['judge']}")
    for label, count in report["labels"].items():
        table.add_row(label, str(count), percent(count / report["n"]))
    table.caption = f"labelled replies: {report['completions']}"
    return table


def _table(title: str, measured: Measurement) -> Table:
    rates = [metric for metric in RATES if metric in measured.rates]
    judged = f"refusals by the judge {measured.judge!r}; intervals: Wilson" if rates else None
    table = Table(title=title, caption=judged, title_justify="left", caption_justify="left")
    table.add_column("metric")
    return table
