"""Measurements as tables: rates with intervals, and before beside after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.evaluation.comparison import compare, perplexity_change
from snt.evaluation.evaluation import Evaluation
from snt.evaluation.measurement import Measurement
from snt.evaluation.power import detectable_beside
from snt.evaluation.statistics import Rate
from snt.evaluation.suites import family, variant
from snt.report.evaluation_models import models_tables
from snt.report.figures import (
    agreement_line,
    interval,
    metric_label,
    p_value,
    percent,
    signed_percent,
)

_GROUPS = 12  # templates or behaviours that a table still lists; a report has them all


def measurement_table(measured: Measurement, title: str) -> Table:
    """Every metric of one model with its interval."""
    table = _table(title, measured, ("value", "95%"))
    for metric, rate in measured.rates.items():
        table.add_row(
            _label(metric, rate.n), percent(rate.rate), _bounds(rate), *_second(measured, metric)
        )
        groups = measured.groups(metric)
        for name, part in groups.items() if len(groups) <= _GROUPS else ():
            table.add_row(f"  {name[:28]} ({part.n})", percent(part.rate), _bounds(part))
    for metric, task in measured.tasks.metrics.items() if measured.tasks else ():
        if task.rate is None:
            error = "" if task.stderr is None else f"± {task.stderr:.4f}"
            table.add_row(_label(metric, task.n), f"{task.value:.4f}", error)
    if measured.perplexity is not None:
        language = measured.perplexity
        table.add_row(_label("perplexity", len(language.tokens)), f"{language.value:.2f}", "")
    beside: dict[str, list[str]] = {}
    for metric in measured.rates:
        change = measured.beside_english(metric)
        if change is not None:
            said = f"{variant(metric)} {signed_percent(change.difference)} (p {p_value(change.p)})"
            beside.setdefault(family(metric), []).append(said)
    for name, changes in beside.items():
        table.caption = (
            f"{table.caption}\n{metric_label(name)}, beside English on the same prompts: "
            f"{', '.join(changes)}"
        )
    return table


def comparison_table(before: Measurement, after: Measurement, title: str, names: Any) -> Table:
    """Every metric of two models on the same prompts, the paired difference and its p-value."""
    table = _table(title, after, (*names, "95%", "change", "p"))
    first, second = before.rates, after.rates
    differences = compare(before, after)
    for metric, difference in differences.items():
        rate = second[metric]
        table.add_row(
            _label(metric, rate.n),
            percent(first[metric].rate),
            percent(rate.rate),
            _bounds(rate),
            signed_percent(difference.difference),
            p_value(difference.p),
            *_second(after, metric),
        )
    for metric, task in after.tasks.metrics.items() if before.tasks and after.tasks else ():
        if task.rate is None and before.tasks is not None and metric in before.tasks.metrics:
            was = before.tasks.metrics[metric].value
            table.add_row(_label(metric, task.n), f"{was:.4f}", f"{task.value:.4f}", "", "", "")
    if differences:
        least = ", ".join(
            f"{metric_label(metric)} {percent(detectable_beside(d.n, d.gained, d.lost))}"
            for metric, d in differences.items()
        )
        table.caption = f"{table.caption or ''}\nsmallest change that would show (80%): {least}"
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
    return [*models_tables(found.as_json()), where, f"page: {found.page}"]


def _bounds(rate: Rate) -> str:
    return interval((rate.low, rate.high))


def _second(measured: Measurement, metric: str) -> list[str]:
    """The second judge's rate of a metric, where there is a second judge."""
    if len(measured.judges) < 2:
        return []
    outcomes = measured.outcomes(metric, measured.judges[1])
    return [percent(sum(outcomes) / len(outcomes)) if outcomes else ""]


def _label(metric: str, count: int) -> str:
    return f"{metric_label(metric)} ({count})"


def _table(title: str, measured: Measurement, columns: Sequence[str]) -> Table:
    judged = bool(measured.completions)
    caption = (
        f"in brackets: prompts or texts; refusals by the judge {measured.judges[0]!r}; intervals "
        f"of rates: Wilson{', of the last model' if len(columns) > 2 else ''}; p: exact McNemar"
        if judged
        else None
    )
    both = measured.agreement()
    if caption is not None and both is not None:
        caption += f"\n{agreement_line(measured.judges, both.share, both.kappa)}"
    table = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE
    )
    table.add_column("metric", no_wrap=True)
    second = [f"by {measured.judges[1]}"] if judged and len(measured.judges) > 1 else []
    for column in [*columns, *second]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
