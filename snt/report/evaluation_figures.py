"""What the page and the table of an evaluation both read from its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from snt.report.figures import percent, signed_percent
from snt.report.provenance import clean

BASELINE = "baseline"  # what it is called beside the others


def models_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models of a report, the one that the others are compared with first."""
    baseline = report.get("baseline")
    first = [] if baseline is None else [{**baseline, "name": BASELINE}]
    return [*first, report, *report.get("compared", ())]


def metrics_of(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every metric that a model has, in order."""
    return list(dict.fromkeys(metric for model in models for metric in model["metrics"]))


def is_rate(entry: Mapping[str, Any]) -> bool:
    """Whether a metric is a share of prompts, shown in percent."""
    return "k" in entry


def change_of(model: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
    """The model's difference in a metric from the one it is compared with."""
    found = model.get("differences", {}).get(metric)
    return found if isinstance(found, Mapping) else None


def detectable(entry: Mapping[str, Any], change: Mapping[str, Any] | None) -> str:
    """The smallest difference that would show: of the comparison, else from as many prompts."""
    if change is not None:
        found = change.get("minimum_detectable_difference")
        return "" if found is None else percent(found)
    given = entry.get("minimum_detectable_difference")
    if given is None:
        return ""
    return "-" if given["unpaired"] is None else percent(given["unpaired"])


def plain(value: float) -> str:
    """A perplexity: two decimals, fewer where language is lost and they say nothing."""
    if abs(value) < 100:
        return f"{value:.2f}"
    return f"{value:.0f}" if abs(value) < 100_000 else f"{value:.1e}"


def change_words(change: Mapping[str, Any]) -> tuple[str, str]:
    """A difference in points, or relative, and its interval; no decimals above 1,000%."""
    value = change["relative"] if "relative" in change else change["difference"]
    low, high = change.get("interval") or (value, value)
    digits = 1 if max(abs(value), abs(low), abs(high)) < 10 else 0
    return signed_percent(value, digits), f"{100 * low:+.{digits}f} to {100 * high:+.{digits}f}"


def gate_cells(result: Mapping[str, Any]) -> list[str]:
    """Model, value, interval and answer of a gate."""
    as_is = result["figure"] == "perplexity"
    value, (low, high) = result["value"], result["interval"] or (None, None)
    shown = "not measured" if value is None else plain(value) if as_is else percent(value)
    bounds = "no interval"
    if low is not None and high is not None:
        bounds = (
            f"{plain(low)} to {plain(high)}" if as_is else f"{100 * low:.1f} to {percent(high)}"
        )
    return [clean(result["model"]), shown, bounds, "FAILS" if result["met"] else "passes"]
