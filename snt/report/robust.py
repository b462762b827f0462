"""Robust tuning as tables: arm by stage as the paper prints it, what was kept, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.report.figures import duration, gigabytes, p_value, percent, signed_percent
from snt.report.tables import line

if TYPE_CHECKING:
    from snt.robust.workflow import RobustRun

_METRICS = {
    "non_refusal": "harmful, not refused",
    "over_refusal": "look-alike, refused",
    "harmless_refusal": "harmless, refused",
    "task": "task solved",
}
_STAGES = {"before": "before", "safety": "after safety", "task": "after the task"}


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
    exact = any("task" in row for row in report["rows"])
    table = Table(
        title=f"Robust tuning of {report['model']['id']} on {report['task']['name']}",
        title_justify="left",
        box=box.SIMPLE,
        caption_justify="left",
        caption="in brackets: 95%, Wilson; perplexity: change against before; task loss: nats a "
        f"token of held-out responses; judge: {report['settings']['evaluate']['judge']}",
    )
    table.add_column("arm")
    table.add_column("stage")
    if several:
        table.add_column("seed", justify="right")
    shown = {name: label for name, label in _METRICS.items() if exact or name != "task"}
    for label in (*shown.values(), "task loss", "perplexity"):
        table.add_column(label, justify="right")
    last = None
    for row in report["rows"]:
        if last is not None and (row["arm"], row["seed"]) != last:
            table.add_section()
        first = (row["arm"], row["seed"]) != last
        last = (row["arm"], row["seed"])
        seed = [str(row["seed"])] if several else []
        change = row.get("perplexity")
        table.add_row(
            row["arm"] if first else "",
            _STAGES[row["stage"]],
            *seed,
            *(_rate(row.get(metric)) for metric in shown),
            f"{row['task_loss']:.3f}",
            "" if change is None else signed_percent(change["change"]),
        )
    return table


def _summary(report: Mapping[str, Any]) -> Table:
    seeds = report["summary"][0]["seeds"]
    table = Table(
        title=f"Means of {seeds} seeds",
        title_justify="left",
        box=box.SIMPLE,
        caption="in brackets: 95%, resampling prompts and seeds",
        caption_justify="left",
    )
    for name in ("arm", "stage"):
        table.add_column(name)
    shown = [name for name in _METRICS if any(name in row for row in report["summary"])]
    for name in shown:
        table.add_column(_METRICS[name], justify="right")
    for row in report["summary"]:
        table.add_row(row["arm"], _STAGES[row["stage"]], *(_rate(row.get(name)) for name in shown))
    return table


def _comparisons(report: Mapping[str, Any]) -> Table:
    table = Table(
        title="Differences after the task, on the same prompts",
        title_justify="left",
        box=box.SIMPLE,
        caption="points; in brackets: 95%, paired bootstrap; p: exact McNemar, by seed",
        caption_justify="left",
    )
    table.add_column("arm minus reference")
    shown = [name for name in _METRICS if any(c["metric"] == name for c in report["comparisons"])]
    for name in shown:
        table.add_column(_METRICS[name], justify="right")
        table.add_column("p", justify="right")
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for one in report["comparisons"]:
        pairs.setdefault((one["arm"], one["reference"]), {})[one["metric"]] = one
    for (arm, reference), by_metric in pairs.items():
        cells: list[str] = []
        for name in shown:
            cells += _difference(by_metric.get(name))
        table.add_row(f"{arm} − {reference}", *cells)
    return table


def _difference(one: Mapping[str, Any] | None) -> tuple[str, str]:
    if one is None:
        return "", ""
    low, high = one["interval"]
    figure = f"{100 * one['value']:+.1f} ({100 * low:+.0f} to {100 * high:+.0f})"
    return figure, ", ".join(p_value(seed["p"]) for seed in one["seeds"])


def _rate(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["interval"]
    return f"{percent(value['value'])} ({100 * low:.0f}–{100 * high:.0f})"
