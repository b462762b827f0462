"""How figures are written, the same in every table and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LABELS: Mapping[str, str] = {
    "non_refusal": "harmful, not refused",
    "harmless_refusal": "harmless, refused",
    "over_refusal": "look-alike, refused",
    "perplexity": "perplexity",
    "multilingual_non_refusal": "harmful, not refused",
    "multilingual_refusal": "harmless, refused",
    "template_attack_success": "templates, not refused",
    "test_case_attack_success": "test cases, not refused",
    "gcg_attack_success": "GCG suffix, not refused",
}


def metric_label(metric: str) -> str:
    """`multilingual_refusal.th` -> harmless, refused: th; a task's figure is its own label."""
    family, _, variant = metric.partition(".")
    if family not in LABELS:
        return metric
    return f"{LABELS[family]}: {variant}" if variant else LABELS[family]


def percent(fraction: float, digits: int = 1) -> str:
    """0.123 -> 12.3%."""
    return f"{100 * fraction:.{digits}f}%"


def small_percent(fraction: float) -> str:
    """Two digits, and no zero for what is there."""
    return "<0.01%" if 0 < fraction < 5e-5 else percent(fraction, 2)


def quantile_name(fraction: float) -> str:
    """0.5 -> median."""
    return {0.0: "lowest", 0.5: "median", 1.0: "highest"}.get(fraction, percent(fraction, 0))


def times(ratio: float | None) -> str:
    """3.14 -> 3.1×; two digits below one, no false ones above a thousand, - for no ratio."""
    if ratio is None:
        return "-"
    if ratio > 1000:
        return ">1,000×"
    return f"{ratio:,.1f}×" if ratio >= 1 else f"{ratio:.2f}×"


def give_or_take(mean: float, deviation: float, sign: str = " ± ") -> str:
    """12.34, 3.1 -> 12.3 ± 3.1, and no zero for what is there."""
    if 0 < mean < 0.05:
        return "<0.05"
    return f"{mean:,.1f}{sign}{deviation:,.1f}"


def signed_percent(fraction: float, digits: int = 1) -> str:
    """0.012 -> +1.2%."""
    return f"{100 * fraction:+.{digits}f}%"


def interval(bounds: Any, digits: int = 1) -> str:
    """(0.1, 0.2) -> 10.0–20.0%."""
    low, high = bounds
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}%"


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def gigabytes(count: int) -> str:
    """Bytes -> GB with two digits."""
    return f"{count / 1e9:.2f} GB"


def p_value(value: float) -> str:
    """A p-value, short."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def agreement_line(names: Sequence[str], share: float, kappa: float | None) -> str:
    """How far two judges agree, for a caption."""
    beyond = "" if kappa is None else f", kappa {kappa:.2f}"
    return f"{names[0]!r} and {names[1]!r} agree on {percent(share)} of the replies{beyond}"


def curve_bar(fraction: float, width: int = 20) -> str:
    """0.5 -> a bar of half the width, for a small picture in text."""
    filled = round(width * min(1.0, max(0.0, fraction)))
    return "█" * filled + "·" * (width - filled)
