"""What removing neurons did, arm by arm; how stable the mask is; the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.report.figures import duration, interval, percent


def verification_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """The `verify` object of a report as tables: replies, log-odds, stability; then the verdict."""
    parts: list[RenderableType] = [_replies(report), _log_odds(report)]
    if report["stability"] is not None:
        parts.append(_curve(report))
    return [
        *parts,
        f"verdict: {report['verdict']}",
        f"{len(report['arms'])} arms in {duration(report['seconds'])}; "
        f"report: {report['report']}; replies: {report['completions']}",
    ]


def _replies(report: Mapping[str, Any]) -> Table:
    arms = report["arms"]
    count = arms["none"]["refusal"]["n"]
    table = _table(
        f"Without the neurons of each arm: replies ({count} harmful requests)",
        ("neurons", "harmful refused", "look-alike refused", "harmless refused", "perplexity"),
        f"in brackets: 95%, Wilson for rates, bootstrap by text for the change of perplexity; "
        f"judge {report['judge']!r}",
    )
    for name, arm in arms.items():
        language = arm["perplexity"]
        change = language["change"]
        table.add_row(
            name,
            f"{arm['neurons']:,}",
            *(_rate(arm[key]) for key in ("refusal", "over_refusal", "harmless_refusal")),
            f"{language['value']:,.2f}"
            if name == "none"
            else f"{_percents(change['value'])} ({_percents(change['interval'][0])} to "
            f"{_percents(change['interval'][1])})",
        )
    return table


def _log_odds(report: Mapping[str, Any]) -> Table:
    lost = ", ".join(report["controls_without_language"])
    note = "nats, change from the untouched model; in brackets: 95%, paired bootstrap"
    openings = report["openings"]
    if openings["of_refusals"]:
        note += (
            f"; the openings counted begin {openings['begin']} of the {openings['of_refusals']} "
            "refusals of the untouched model"
        )
    if lost:
        note += f"; not compared, for their language is lost: {lost}"
    table = _table(
        "Refusal log-odds at the opening of the reply",
        ("harmful", "look-alike", "harmless", "harmful − harmless"),
        note,
    )
    groups = ("harmful", "lookalike", "harmless")
    for name, arm in report["arms"].items():
        odds = arm["refusal_log_odds"]
        if name == "none":
            table.add_row(name, *(f"at {odds[group]['value']:.2f}" for group in groups), "")
            continue
        apart = odds["harmful_minus_harmless_change"]
        table.add_row(name, *(_nats(odds[group]["change"]) for group in groups), _nats(apart))
    return table


def _curve(report: Mapping[str, Any]) -> Table:
    stability = report["stability"]
    first, second = stability["prompts"]
    table = _table(
        f"Stability: masks from two halves of the corpus ({first} and {second} prompts)",
        ("neurons", "parameters", "IoU of the halves", "by chance"),
        f"halves: {stability['halves']}; by chance: random masks matched per layer and kind",
        first="selection",
    )
    for point in report["curve"]:
        mine = point["threshold"] == stability["threshold"]
        table.add_row(
            point["threshold"],
            f"{point['neurons']:,}",
            f"{point['parameters']:,}",
            *(
                "-" if point[key] is None else f"{point[key]:.3f}"
                for key in ("iou", "iou_by_chance")
            ),
            style="bold" if mine else None,
        )
    return table


def _table(title: str, columns: tuple[str, ...], caption: str, first: str = "arm") -> Table:
    table = Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE
    )
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{percent(rate['value'])} ({interval(rate['interval'])})"


def _percents(fraction: float) -> str:
    # A destroyed model's perplexity is a thousand times what it was; digits would say nothing.
    return f"{100 * fraction:+,.1f}%" if abs(fraction) < 10 else f"× {1 + fraction:,.0f}"


def _nats(change: Mapping[str, Any]) -> str:
    low, high = change["interval"]
    return f"{change['value']:+.2f} ({low:+.2f} to {high:+.2f})"
