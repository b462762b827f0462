"""Safety against over-refusal as a picture: every model a point, its two intervals a cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snt.report.figures import interval, percent
from snt.report.page import text

INKS = 8  # Colours; more models take them again, their numbers tell them apart.
_SIDE = 300  # of the plot, in units of the picture
_LEFT, _TOP, _RIGHT, _BOTTOM = 58, 18, 22, 52
_RADIUS = 9.5
_INSET = 16  # of 0 and of the ends from the frame, so that points there do not hide the labels
_SCALES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
_STEPS = 5

# Okabe and Ito (2008), which stay apart for the colour-blind; lighter or darker by theme.
STYLE = """
:root { --m1: #0072b2; --m2: #b84a00; --m3: #00795a; --m4: #a34d82; --m5: #8a6100; --m6: #28799e;
  --m7: #55606b; --m8: #7a3fa0; --num: #fff; }
@media (prefers-color-scheme: dark) { :root { --m1: #4aa8e0; --m2: #f08a3c; --m3: #2fc396;
  --m4: #e09ac4; --m5: #e6b422; --m6: #8fd0f2; --m7: #b4bdc6; --m8: #c49be6; --num: #101418; } }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.charts figure { margin: 0; flex: 1 1 20rem; max-width: 30rem; }
.charts svg { width: 100%; height: auto; display: block; font-size: 12px; }
.charts text { fill: var(--ink); } .charts .soft { fill: var(--soft); }
.charts .grid { stroke: var(--line); stroke-width: 1; fill: none; }
.charts .bar { stroke-width: 2; fill: none; }
.charts circle { stroke: var(--back); stroke-width: 1.5; }
.charts .num { fill: var(--num); font-weight: 700; }
""" + "\n".join(
    f".s{n} {{ stroke: var(--m{n}); }} .f{n} {{ fill: var(--m{n}); }} "
    f".k{n} {{ background: var(--m{n}); color: var(--num); }}"
    for n in range(1, INKS + 1)
)


@dataclass(frozen=True)
class Point:
    """A model: `across` and `up` are (value, low, high) as fractions; `number` counts from 1."""

    number: int
    name: str
    across: tuple[float, float, float]
    up: tuple[float, float, float]


def ink(number: int) -> int:
    """The colour of a model's number."""
    return (number - 1) % INKS + 1


def chart(points: Sequence[Point], across: str, up: str) -> str:
    """One panel as SVG: `across` and `up` name the axes, upwards from 0 to 100%."""
    right = next(s for s in _SCALES if s >= min(1.0, max(p.across[2] for p in points)))
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    said = "; ".join(_said(point, across, up) for point in points)
    # Points lie above all crosses; the first models, drawn last, above the others.
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(said)}">',
        *_axes(right, across, up),
        *(_cross(point, right) for point in reversed(points)),
        *(_dot(point, right, _said(point, across, up)) for point in reversed(points)),
        "</svg>",
    ]
    return f"<figure>{''.join(parts)}</figure>"


def _axes(right: float, across: str, up: str) -> list[str]:
    bottom = _TOP + _SIDE
    parts = []
    for step in range(_STEPS + 1):
        share = step / _STEPS
        x, y = _x(right * share, right), _y(share)
        lines = f"M{x} {_TOP}V{bottom}M{_LEFT} {y}H{_LEFT + _SIDE}"
        parts.append(f'<path class="grid" d="{lines}"/>')
        digits = 0 if right * 100 % _STEPS == 0 else 1
        parts.append(_text(x, bottom + 18, percent(right * share, digits), "middle", "soft"))
        parts.append(_text(_LEFT - 8, y + 4, percent(share, 0), "end", "soft"))
    middle = _TOP + _SIDE / 2
    parts.append(_text(_LEFT + _SIDE / 2, bottom + 40, f"{across} →", "middle"))
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{text(up)} →</text>'
    )
    return parts


def _cross(point: Point, right: float) -> str:
    x, y = _x(point.across[0], right), _y(point.up[0])
    level = f"M{_x(point.across[1], right)} {y}H{_x(point.across[2], right)}"
    upright = f"M{x} {_y(point.up[1])}V{_y(point.up[2])}"
    return f'<path class="bar s{ink(point.number)}" d="{level}{upright}"/>'


def _dot(point: Point, right: float, said: str) -> str:
    x, y = _x(point.across[0], right), _y(point.up[0])
    return (
        f'<g><title>{text(said)}</title><circle class="f{ink(point.number)}" cx="{x}" cy="{y}" '
        f'r="{_RADIUS}"/>{_text(x, y + 4, str(point.number), "middle", "num")}</g>'
    )


def _said(point: Point, across: str, up: str) -> str:
    return (
        f"{point.number}, {point.name}: {up} {percent(point.up[0])} ({interval(point.up[1:])}), "
        f"{across} {percent(point.across[0])} ({interval(point.across[1:])})"
    )


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x}" y="{y}" text-anchor="{anchor}">{text(words)}</text>'


def _x(share: float, right: float) -> float:
    return round(_LEFT + _INSET + (_SIDE - 2 * _INSET) * min(share / right, 1.0), 1)


def _y(share: float) -> float:
    return round(_TOP + _INSET + (_SIDE - 2 * _INSET) * (1 - share), 1)
