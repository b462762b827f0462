"""Robust tuning as tables: arm by stage as the paper prints it, what was kept, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.report.figures import duration, gigabytes, p_value, signed_percent
from snt.report.tables import line

if TYPE_CHECKING:
    from snt.robust.workflow import RobustRun

_METRICS = {
    "non_refusal": "harmful, not refused",
    "over_refusal": "look-\nalike, refused",  # else cut within a word at 80 columns
    "harmless_refusal": "harmless, refused",
    "task": "task solved",
}
_STAGES = {"before": "before", "safety": "safety", "task": "task"}


def robust_tables(found: RobustRun) -> list[RenderableType]:
    """One row per arm, stage and seed, a sum where there are several seeds; then the sentences."""
    report = found.as_json()
    several = len(found.seeds) > 1
    tables = [_rows(report, several)] + ([_summary(report)] if several else [])
    if report["comparisons"]:
        tables.append(_comparisons(report))
    cost = (
        f"{len(found.results)} measured models, {found.reused} of them kept from before, in "
        f"{duration(found.seconds)}, at most {gigabytes(found.peak_bytes)} of memory"
    )
    sentences = [line(text) for text in report["verdicts"]]
    return [*tables, *sentences, "", f"{cost}; files: {found.directory}"]


def plan_tables(plan: Mapping[str, Any]) -> list[RenderableType]:
    """What `--dry-run` prints."""
    table = Table(
        "job",
        "does",
        "on disk",
        box=box.SIMPLE,
        title=f"Robust tuning on {plan['task']}",
        title_justify="left",
        caption="what is on disk is kept if it was made with the same model, data and settings",
        caption_justify="left",
    )
    for job in plan["jobs"]:
        table.add_row(job["job"], job["does"], "yes" if job["on_disk"] else "")
    lines = [f"{name}: {about}" for name, about in plan["arms"].items()]
    where = f"mask: {plan['mask']}; foundation: {plan['foundation']}; files: {plan['directory']}"
    return [table, *lines, where]


def _rows(report: Mapping[str, Any], several: bool) -> Table:
    table = _table(
        f"Robust tuning of {report['model']['id']} on {report['task']['name']}",
        "percent, in brackets 95% (Wilson); task loss: nats a token of held-out responses; "
        f"perplexity: change; judge: {report['settings']['evaluate']['judges'][0]}",
    )
    shown = _measured(report["rows"])
    _columns(table, [*(_METRICS[name] for name in shown), "task loss", "perplex-\nity"])
    last = None
    for row in report["rows"]:
        named = f"{row['arm']}, seed {row['seed']}" if several else row["arm"]
        if named != last:
            table.add_row(named, style="bold")
        last = named
        change = row.get("perplexity")
        table.add_row(
            f"  {_STAGES[row['stage']]}",
            *(_rate(row.get(metric)) for metric in shown),
            f"{row['task_loss']:.3f}",
            "" if change is None else signed_percent(change["change"]),
        )
    return table


def _summary(report: Mapping[str, Any]) -> Table:
    seeds = report["summary"][0]["seeds"]
    table = _table(f"Means of {seeds} seeds", "in brackets: 95%, resampling prompts and seeds")
    shown = _measured(report["summary"])
    _columns(table, [_METRICS[name] for name in shown])
    last = None
    for row in report["summary"]:
        if row["arm"] != last:
            table.add_row(row["arm"], style="bold")
        last = row["arm"]
        cells = (_rate(row.get(name)) for name in shown)
        table.add_row(f"  {_STAGES[row['stage']]}", *cells)
    return table


def _comparisons(report: Mapping[str, Any]) -> Table:
    table = _table(
        "After the task, arm minus reference, on the same prompts",
        "points, in brackets 95% (paired bootstrap); after them p of exact McNemar, by seed",
        whole_names=False,
    )
    shown = _measured(report["comparisons"], "metric")
    _columns(table, [_METRICS[name] for name in shown])
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for one in report["comparisons"]:
        pairs.setdefault((one["arm"], one["reference"]), {})[one["metric"]] = one
    for (arm, reference), by_metric in pairs.items():
        cells = (_difference(by_metric.get(name)) for name in shown)
        table.add_row(f"{arm} − {reference}", *cells)
    return table


def _table(title: str, caption: str, whole_names: bool = True) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    # No min_width: rich forgets it when it makes a table narrower, and cuts the last column.
    table.add_column("", no_wrap=whole_names)
    return table


def _columns(table: Table, names: Sequence[str]) -> None:
    for name in names:
        # Too narrow a terminal gets two lines for a figure, never a part of it.
        table.add_column(name, justify="right", overflow="fold")


def _measured(rows: Sequence[Mapping[str, Any]], column: str | None = None) -> list[str]:
    """The metrics that rows have, or name in `column`, in the order of a table."""
    held = {row[column] for row in rows} if column else {name for row in rows for name in row}
    return [name for name in _METRICS if name in held]


def _difference(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return ""
    low, high = one["interval"]
    figure = f"{100 * one['value']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
    return f"{figure}\n{', '.join(p_value(seed['p']) for seed in one['seeds'])}"


def _rate(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["interval"]
    return f"{100 * value['value']:.1f} ({100 * low:.0f}–{100 * high:.0f})"
