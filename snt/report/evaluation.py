"""Two measurements as a table, before beside after; and what `snt eval` prints."""

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
from snt.report.evaluation_models import models_tables
from snt.report.figures import (
    agreement_line,
    interval,
    metric_label,
    p_value,
    percent,
    signed_percent,
)


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
            interval((rate.low, rate.high)),
            signed_percent(difference.difference),
            p_value(difference.p),
        )
    for metric, task in after.tasks.metrics.items() if before.tasks and after.tasks else ():
        if task.rate is None and before.tasks is not None and metric in before.tasks.metrics:
            was = before.tasks.metrics[metric].value
            table.add_row(_label(metric, task.n), f"{was:.4f}", f"{task.value:.4f}", "", "", "")
    if differences:
        table.caption = f"{table.caption or ''}{_second_judge(before, after, list(differences))}"
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


def _second_judge(before: Measurement, after: Measurement, metrics: Sequence[str]) -> str:
    """A line of the rates by the second judge, where both models have one."""
    if min(len(before.judges), len(after.judges)) < 2:
        return ""
    shown = []
    for metric in metrics:
        outcomes = [one.outcomes(metric, one.judges[1]) for one in (before, after)]
        if all(outcomes):
            was, now = (percent(sum(found) / len(found)) for found in outcomes)
            shown.append(f"{metric_label(metric)} {was} to {now}")
    return f"\nby {after.judges[1]}: {', '.join(shown)}" if shown else ""


def _label(metric: str, count: int) -> str:
    return f"{metric_label(metric)} ({count})"


def _table(title: str, measured: Measurement, columns: Sequence[str]) -> Table:
    judged = bool(measured.completions)
    caption = (
        f"in brackets: prompts or texts; refusals by the judge {measured.judges[0]!r}; intervals "
        "of rates: Wilson, of the last model; p: exact McNemar"
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
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
