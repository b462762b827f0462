"""The comparison of places as tables, and its curve as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.place_areas import curve
from snt.report.figures import duration, gigabytes, percent, signed_percent

if TYPE_CHECKING:
    from snt.place import Placing
    from snt.place_results import PlaceRow

# Colours that stay apart for the colour-blind (Okabe and Ito 2008), and shapes beside them.
_INKS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8A8A8A",
    "#F0E442",
    "#000000",
)
_SHAPES = ("circle", "square", "diamond", "triangle", "cross")
_PANEL, _GAP, _TOP, _LEFT = 220, 34, 46, 54
# Names in a row of the legend, and the width of one.
_IN_ROW, _ENTRY = 4, 170


def place_tables(found: Placing) -> list[RenderableType]:
    """The areas, the replies, how many times more random ones need, and the cost."""
    areas = _by_budget(
        found,
        "Does the place matter? Harmful requests told from safe ones, trained alike",
        "AUC: how often a harmful prompt has larger refusal log-odds than a safe one, percent; "
        "over random: on the same prompts, points.",
        {
            "parameters": lambda row: f"{row.parameters:,}",
            "AUC, 95%": lambda row: _points(row.auc),
            "over random, 95%": lambda row: _points(row.auc_over_random),
        },
    )
    replies = _by_budget(
        found,
        "The same models' replies",
        "separation: harmful refused minus safe refused, points; before: "
        f"{percent(found.before['safety'])} and {percent(found.before['over_refusal'])}.",
        {
            "harmful": lambda row: percent(row.safety),
            "safe": lambda row: percent(row.over_refusal),
            "perplexity": lambda row: signed_percent(row.perplexity_change),
            "separation, 95%": lambda row: _points(row.separation),
        },
    )
    needed = Table("mask", "budget", "random ones need", box=box.SIMPLE)
    for rule, by_budget in found.needed().items():
        for budget, times in by_budget.items():
            needed.add_row(
                rule, budget, "more than measured" if times is None else f"{times:.1f} ×"
            )
    cost = (
        f"{len(found.arms)} arms in {duration(found.seconds)}, at most "
        f"{gigabytes(found.peak_bytes)} of memory; files: {found.directory}"
    )
    return [areas, replies, needed, cost]


def _by_budget(
    found: Placing, title: str, caption: str, columns: Mapping[str, Callable[[PlaceRow], str]]
) -> Table:
    """One line per rule and budget, no wider than 80 characters."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, caption=caption, caption_justify="left"
    )
    table.add_column("budget")
    table.add_column("mask")
    for name in columns:
        table.add_column(name, justify="right")
    last = ""
    for row in found.rows:
        if last and row.budget != last:
            table.add_section()
        mask = f"{row.rule} × {row.draws}" if row.draws > 1 else row.rule
        shown = "" if row.budget == last else row.budget
        table.add_row(shown, mask, *(value(row) for value in columns.values()))
        last = row.budget
    return table


def place_picture(found: Placing) -> str:
    """An SVG page: one panel per budget, harmful refused over safe refused, a colour per rule.

    Lines follow every threshold of the refusal log-odds, where those were measured; marks are
    replies, at each scale of the deltas.
    """
    budgets = list(dict.fromkeys(arm.budget for arm in found.arms))
    rules = list(dict.fromkeys(arm.rule for arm in found.arms))
    # The title and a row of the legend are as wide as three panels.
    width = _LEFT + max(len(budgets) * (_PANEL + _GAP), _IN_ROW * _ENTRY)
    height = _TOP + _PANEL + 70 + 18 * (-(-len(rules) // _IN_ROW))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="15">Harmful requests refused (upwards) against '
        "safe requests refused (to the right), by budget</text>",
    ]
    for number, budget in enumerate(budgets):
        left = _LEFT + number * (_PANEL + _GAP)
        parts += _frame(left, f"{budget} of the parameters", number == 0)
        for kind, rule in enumerate(rules):
            arms = [arm for arm in found.arms if (arm.rule, arm.budget) == (rule, budget)]
            full = [arm.at_full for arm in arms if arm.at_full.odds]
            if full:
                line = " ".join(f"{left + x * _PANEL:.1f},{_up(y):.1f}" for x, y in curve(full))
                ink = _INKS[kind % len(_INKS)]
                parts.append(f'<polyline points="{line}" fill="none" stroke="{ink}"/>')
            for arm in arms:
                parts += [
                    _mark(kind, left + point.over_refusal * _PANEL, _up(point.safety))
                    for point in arm.points
                ]
    for number, rule in enumerate(rules):
        x, y = _LEFT + _ENTRY * (number % _IN_ROW), _TOP + _PANEL + 52 + 18 * (number // _IN_ROW)
        parts += [_mark(number, x, y - 4), f'<text x="{x + 12}" y="{y}">{escape(rule)}</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def _up(share: float) -> float:
    return _TOP + _PANEL - share * _PANEL


def _frame(left: int, title: str, named: bool) -> list[str]:
    bottom = _TOP + _PANEL
    parts = [
        f'<text x="{left}" y="{_TOP - 8}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{left}" y="{_TOP}" width="{_PANEL}" height="{_PANEL}" fill="none" '
        'stroke="#bbb"/>',
    ]
    for share in (0.25, 0.5, 0.75):
        y = bottom - share * _PANEL
        parts.append(f'<line x1="{left}" x2="{left + _PANEL}" y1="{y}" y2="{y}" stroke="#eee"/>')
    for share in (0.0, 0.5, 1.0):
        x = left + share * _PANEL
        label = percent(share, 0)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{label}</text>')
    for share in (0.0, 0.5, 1.0) if named else ():
        y = bottom - share * _PANEL + 4
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{percent(share, 0)}</text>')
    return parts


def _mark(kind: int, x: float, y: float) -> str:
    ink, shape = _INKS[kind % len(_INKS)], _SHAPES[kind % len(_SHAPES)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ink}"/>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -5), (5, 4), (-5, 4)),
        "cross": ((-5, -2), (-2, -5), (5, 2), (2, 5)),
    }[shape]
    line = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{line}" fill="{ink}"/>'


def _points(value: tuple[float, float, float] | None) -> str:
    if value is None:
        return ""
    middle, low, high = (100 * part for part in value)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"
