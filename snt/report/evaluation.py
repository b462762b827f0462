"""Measurements as tables: rates with intervals, and before beside after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.evaluation.evaluate import Evaluation
from snt.evaluation.measurement import RATES, Measurement, compare, perplexity_change
from snt.report.figures import LABELS, interval, p_value, percent, signed_percent


def measurement_table(measured: Measurement, title: str) -> Table:
    """Every metric of one model with its interval."""
    table = _table(title, measured, ("value", "95%"))
    for metric, rate in measured.rates.items():
        table.add_row(_label(metric, rate.n), percent(rate.rate), interval((rate.low, rate.high)))
    if measured.perplexity is not None:
        language = measured.perplexity
        table.add_row(_label("perplexity", len(language.tokens)), f"{language.value:.2f}", "")
    return table


def comparison_table(before: Measurement, after: Measurement, title: str, names: Any) -> Table:
    """Every metric of two models on the same prompts, the paired difference and its p-value."""
    table = _table(title, after, (*names, "95%", "change", "p"))
    first, second = before.rates, after.rates
    for metric, difference in compare(before, after).items():
        rate = second[metric]
        table.add_row(
            _label(metric, rate.n),
            percent(first[metric].rate),
            percent(rate.rate),
            interval((rate.low, rate.high)),
            signed_percent(difference.difference),
            p_value(difference.p),
        )
    change = perplexity_change(before, after)
    if change is not None and before.perplexity is not None and after.perplexity is not None:
        relative, low, high = change
        table.add_row(
            _label("perplexity", len(after.perplexity.tokens)),
            f"{before.perplexity.value:.2f}",
            f"{after.perplexity.value:.2f}",
            "",
            signed_percent(relative),
            "",
        )
        table.caption = (
            f"{table.caption or ''}\nperplexity's change, 95% by text: {100 * low:+.1f} to "
            f"{100 * high:+.1f}%"
        ).strip()
    return table


def evaluation_table(found: Evaluation) -> list[RenderableType]:
    """What `snt eval` prints."""
    where = f"replies and report: {found.directory}"
    if found.baseline is None:
        return [measurement_table(found.measured, found.model), where]
    title = f"{found.model} beside {found.baseline_model}"
    names = ("baseline", "model")
    return [comparison_table(found.baseline, found.measured, title, names), where]


def _label(metric: str, count: int) -> str:
    return f"{LABELS[metric]} ({count})"


def _table(title: str, measured: Measurement, columns: Sequence[str]) -> Table:
    judged = any(metric in measured.rates for metric in RATES)
    caption = (
        f"in brackets: prompts or texts; refusals by the judge {measured.judge!r}; intervals of "
        f"rates: Wilson{', of the last model' if len(columns) > 2 else ''}; p: exact McNemar"
        if judged
        else None
    )
    table = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE
    )
    table.add_column("metric", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
