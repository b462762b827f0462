"""Minimum detectable differences: how large an effect must be for this many prompts to show it.

A difference counts as detectable when the exact test finds it, at 5% two-sided, in 80% of
repetitions. The power is summed over all outcomes, not simulated; beyond the sizes where that is
feasible a normal approximation takes over (Connor 1987; Fleiss, Levin and Paik 2003).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

from snt.errors import RequestError
from snt.evaluation.statistics import CONFIDENCE, check_fraction, check_trials

if TYPE_CHECKING:
    from numpy.typing import NDArray

POWER: Final = 0.8
# Share of prompts whose outcome changes, where no second measurement has shown it.
DISCORDANT: Final = 0.2
PAIRED_EXACT_UP_TO: Final = 20_000
UNPAIRED_EXACT_UP_TO: Final = 500


def paired_detectable(
    n: int,
    discordant: float = DISCORDANT,
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float:
    """Smallest difference of two rates on the same `n` prompts that exact McNemar shows.

    `discordant` is the share of prompts whose outcome changes, from 0 to below 1; no difference is
    larger than it, so where that share is too small for any, it is taken to be the difference
    itself. A fraction; 1.0 means that even all prompts changing one way would not show. Raises
    RequestError for n below 1, a share outside [0, 1), a power below one half.
    """
    check_trials(n)
    if not 0 <= discordant < 1:
        raise RequestError(f"discordant {discordant}; give a fraction from 0 to below 1")
    _check(confidence, power)
    if n > PAIRED_EXACT_UP_TO:
        return _smallest(lambda d: _connor_surplus(n, d, discordant, confidence, power))
    edges = _mcnemar_edges(n, 1 - confidence)
    return _smallest(lambda d: _mcnemar_power(n, d, max(d, discordant), edges) - power)


def detectable_beside(
    n: int,
    gained: int,
    lost: int,
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float:
    """Smallest difference of two rates on the same `n` prompts that would show beside this churn.

    `gained` and `lost` are counts of a comparison at hand. What cancels out in them, twice the
    smaller, is taken for changes that come without an effect; the effect comes on top, one way.
    Exact McNemar. A fraction; 1.0 where none would show. Raises RequestError for n below 1, counts
    that are not of `n` prompts, a power below one half.
    """
    check_trials(n)
    if min(gained, lost) < 0 or gained + lost > n:
        raise RequestError(f"{gained} gained and {lost} lost of {n} prompts; give counts of them")
    churn = 2 * min(gained, lost) / n
    most = 1 - churn
    _check(confidence, power)
    if most <= 0:
        return 1.0
    if n > PAIRED_EXACT_UP_TO:

        def surplus(d: float) -> float:
            return _connor_surplus(n, d, churn + d, confidence, power)

    else:
        edges = _mcnemar_edges(n, 1 - confidence)

        def surplus(d: float) -> float:
            return _mcnemar_power(n, d, min(1.0, churn + d), edges) - power

    return 1.0 if surplus(most) <= 0 else _root(surplus, most)


def unpaired_detectable(
    n: int,
    rate: float,
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> float | None:
    """Smallest difference from `rate` that `n` prompts and `n` others show by Fisher's exact test.

    A rate may go up or down; the smaller of the two distances counts. A fraction, None when not
    even 0 or 1 would show. Raises RequestError for n below 1, a rate outside 0..1, a power below
    one half.
    """
    check_trials(n)
    if not 0 <= rate <= 1:
        raise RequestError(f"a rate of {rate}; give a fraction from 0 to 1")
    _check(confidence, power)
    if n > UNPAIRED_EXACT_UP_TO:
        surplus = _two_sample_surplus(n, rate, confidence, power)
    else:
        region = _fisher_region(n, 1 - confidence)

        def surplus(other: float) -> float:
            return _fisher_power(n, rate, other, region) - power

    found = []
    for sign, room in ((1, 1 - rate), (-1, rate)):
        if room > 0 and surplus(rate + sign * room) > 0:
            found.append(_root(partial(_along, surplus, rate, sign), room))
    return min(found, default=None)


def change_detectable(
    low: float, high: float, *, confidence: float = CONFIDENCE, power: float = POWER
) -> float:
    """Smallest change of a mean that would show, from the interval `low` to `high` of this one.

    Normal: the half-width times 1 + z_power / z_confidence; in the unit of the interval.
    """
    _check(confidence, power)
    z_alpha, z_power = _quantiles(confidence, power)
    return (high - low) / 2 * (1 + z_power / z_alpha)


def _mcnemar_edges(n: int, alpha: float) -> NDArray[Any]:
    """(n + 1,): of m discordant pairs, the largest b with a two-sided p of at most alpha; or -1."""
    import numpy as np

    binom = _stats().binom
    m = np.arange(n + 1)
    edge = binom.ppf(alpha / 2, m, 0.5)
    # ppf gives the first count whose tail reaches alpha / 2; it is in the region if it equals it.
    edge = np.where(binom.cdf(edge, m, 0.5) <= alpha / 2, edge, edge - 1)
    return np.where(m == 0, -1, edge)


def _mcnemar_power(n: int, d: float, discordant: float, edges: NDArray[Any]) -> float:
    """Power of the exact test when `discordant` of the prompts change, (discordant ± d) / 2 so."""
    import numpy as np

    binom = _stats().binom
    m = np.arange(n + 1)
    one_way = min(1.0, (discordant + d) / (2 * discordant)) if discordant else 0.5
    rejected = binom.cdf(edges, m, one_way) + binom.sf(m - edges - 1, m, one_way)
    return float((binom.pmf(m, n, discordant) * np.where(edges < 0, 0.0, rejected)).sum())


@lru_cache(maxsize=32)
def _fisher_region(n: int, alpha: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """(n + 1,) twice: beside x successes in one sample of n, up to how many in the other sample
    and from how many on the two-sided p is at most alpha; -1 and n + 1 where there are none.
    """
    import numpy as np

    hypergeom = _stats().hypergeom
    # Of m successes in both samples, the largest count in one that is rejected.
    edges = np.full(2 * n + 1, -1)
    for m in range(2 * n + 1):
        least = max(0, m - n)
        tails = hypergeom.cdf(np.arange(least, m // 2 + 1), 2 * n, m, n)
        inside = int(np.searchsorted(tails, alpha / 2, side="right"))
        edges[m] = least + inside - 1 if inside else -1
    counts = np.arange(n + 1)
    x, y = counts[:, None], counts[None, :]
    rejected = np.minimum(x, y) <= edges[x + y]
    return (rejected & (y < x)).sum(axis=1) - 1, n + 1 - (rejected & (y > x)).sum(axis=1)


def _fisher_power(
    n: int, first: float, second: float, region: tuple[NDArray[Any], NDArray[Any]]
) -> float:
    """Power of Fisher's exact test of two samples of `n` with these rates."""
    import numpy as np

    binom = _stats().binom
    up_to, from_on = region
    rejected = binom.cdf(up_to, n, second) + binom.sf(from_on - 1, n, second)
    return float((binom.pmf(np.arange(n + 1), n, first) * rejected).sum())


def _connor_surplus(n: int, d: float, discordant: float, confidence: float, power: float) -> float:
    z_alpha, z_power = _quantiles(confidence, power)
    psi = max(discordant, d)
    return d * math.sqrt(n) - z_alpha * math.sqrt(psi) - z_power * math.sqrt(psi - d * d)


def _two_sample_surplus(
    n: int, rate: float, confidence: float, power: float
) -> Callable[[float], float]:
    z_alpha, z_power = _quantiles(confidence, power)

    def surplus(other: float) -> float:
        middle = (rate + other) / 2
        pooled = math.sqrt(2 * middle * (1 - middle))
        apart = math.sqrt(rate * (1 - rate) + other * (1 - other))
        return abs(other - rate) * math.sqrt(n) - z_alpha * pooled - z_power * apart

    return surplus


def _along(surplus: Callable[[float], float], rate: float, sign: int, distance: float) -> float:
    return surplus(rate + sign * distance)


def _smallest(surplus: Callable[[float], float]) -> float:
    return 1.0 if surplus(1.0) <= 0 else _root(surplus, 1.0)


def _root(surplus: Callable[[float], float], most: float) -> float:
    # From just above nothing: at no difference at all, no share of prompts need change.
    return float(import_module("scipy.optimize").brentq(surplus, 1e-9 * most, most, xtol=1e-6))


def _quantiles(confidence: float, power: float) -> tuple[float, float]:
    normal = NormalDist()
    return normal.inv_cdf(1 - (1 - confidence) / 2), normal.inv_cdf(power)


def _stats() -> Any:
    # scipy takes a second to import: it is had when a number is wanted.
    return import_module("scipy.stats")


def _check(confidence: float, power: float) -> None:
    check_fraction("confidence", confidence)
    check_fraction("power", power)
    if power < 0.5:
        raise RequestError(f"power {power}; give at least 0.5, as in 0.8")
