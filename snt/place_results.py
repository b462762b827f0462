"""What the comparison of places found: points, curves, and how many times more random ones need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snt.place_areas import auc_interval
from snt.place_points import CONFIDENCE, RESAMPLES, ArmResult, Point


@dataclass(frozen=True)
class PlaceRow:
    """One rule at one budget, draws taken together; figures are means with 95% intervals.

    separation: at the trained scale. best: at the scale that separates best. Intervals resample
    prompts, and draws where there are several (bootstrap, percentile). over_random: the separation
    minus that of the random masks of the same budget, prompt by prompt; None without them. auc: how
    often a harmful prompt has larger refusal log-odds than a safe one: safety against over-refusal
    over every threshold, 0.5 by chance and 1 where they are told apart without fault; None where
    log-odds were not measured.
    """

    rule: str
    budget: str
    draws: int
    parameters: int
    safety: float
    over_refusal: float
    perplexity_change: float
    separation: tuple[float, float, float]
    best: tuple[float, float, float]
    over_random: tuple[float, float, float] | None
    auc: tuple[float, float, float] | None
    auc_over_random: tuple[float, float, float] | None


def place_results(arms: Sequence[ArmResult]) -> list[PlaceRow]:
    """One row per rule and budget, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[ArmResult]] = {}
    for arm in arms:
        groups.setdefault((arm.rule, arm.budget), []).append(arm)
    rows = []
    for (rule, budget), members in groups.items():
        random = [arm.at_full for arm in groups.get(("random", budget), ())]
        full = [arm.at_full for arm in members]
        rows.append(
            PlaceRow(
                rule,
                budget,
                len(members),
                round(float(np.mean([arm.parameters for arm in members]))),
                float(np.mean([point.safety for point in full])),
                float(np.mean([point.over_refusal for point in full])),
                float(np.mean([point.perplexity_change for point in full])),
                separation_interval(full),
                separation_interval([arm.best for arm in members]),
                separation_difference(full, random) if random and rule != "random" else None,
                auc_interval(full) if full[0].odds else None,
                auc_interval(full, random)
                if random and rule != "random" and full[0].odds
                else None,
            )
        )
    return rows


def separation_interval(points: Sequence[Point], seed: int = 0) -> tuple[float, float, float]:
    """Mean separation of points on the same prompts, with a bootstrap interval."""
    draw = np.random.default_rng(seed)
    outcomes = _outcomes(points)
    found = []
    for _ in range(RESAMPLES):
        members = draw.integers(0, len(points), len(points))
        drawn = [
            part[members][:, draw.integers(0, part.shape[1], part.shape[1])] for part in outcomes
        ]
        found.append(_separation(drawn))
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.mean([point.separation for point in points])), float(low), float(high)


def separation_difference(
    points: Sequence[Point], others: Sequence[Point], seed: int = 0
) -> tuple[float, float, float]:
    """Mean separation of `points` minus that of `others`, both on the same resampled prompts."""
    draw = np.random.default_rng(seed)
    sides = [_outcomes(side) for side in (points, others)]
    sizes = [part.shape[1] for part in sides[0]]
    found = []
    for _ in range(RESAMPLES):
        prompts = [draw.integers(0, size, size) for size in sizes]
        members = [draw.integers(0, len(side[0]), len(side[0])) for side in sides]
        one, two = (
            _separation([part[some][:, at] for part, at in zip(side, prompts, strict=True)])
            for side, some in zip(sides, members, strict=True)
        )
        found.append(one - two)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return _separation(sides[0]) - _separation(sides[1]), float(low), float(high)


def _outcomes(points: Sequence[Point]) -> list[np.ndarray]:
    """(points, prompts) of the harmful corpus, then of each safe one."""
    harmful = np.array([point.refused for point in points], dtype=float)
    names = points[0].safe_refused
    return [
        harmful,
        *(np.array([p.safe_refused[name] for p in points], dtype=float) for name in names),
    ]


def _separation(outcomes: Sequence[np.ndarray]) -> float:
    harmful, *safe = (float(part.mean()) for part in outcomes)
    return harmful - float(np.mean(safe))


def times_needed(rows: Sequence[PlaceRow], located: str, control: str) -> dict[str, float | None]:
    """Per budget of `located`, how many times its parameters `control` needs to do as well.

    By the area under the curve, or the separation where that was not measured. Linear
    interpolation of the control's figure over the logarithm of its parameters; None where it is
    never reached at the budgets measured, which is to say more than the largest of them.
    """

    def figure(row: PlaceRow) -> float:
        return (row.auc or row.separation)[0]

    curve = sorted((r.parameters, figure(r)) for r in rows if r.rule == control)
    found: dict[str, float | None] = {}
    for row in rows:
        if row.rule == located and curve:
            needed = _first_reaching(curve, figure(row))
            found[row.budget] = None if needed is None else needed / row.parameters
    return found


def _first_reaching(curve: Sequence[tuple[int, float]], wanted: float) -> float | None:
    if curve[0][1] >= wanted:
        return float(curve[0][0])
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if high >= wanted:
            share = (wanted - low) / (high - low)
            return float(np.exp(np.log(before) + share * (np.log(after) - np.log(before))))
    return None
