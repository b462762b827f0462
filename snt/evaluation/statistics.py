"""Intervals and paired tests for rates: how sure an evaluation may be of what it prints.

Rates get Wilson intervals, two conditions on the same prompts an exact McNemar test and a paired
bootstrap interval of their difference (Wilson 1927; McNemar 1947; Efron 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import NormalDist
from typing import Any, Final

from snt.errors import RequestError

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 10_000


@dataclass(frozen=True)
class Rate:
    """`k` of `n`, with its Wilson interval; all but `k` and `n` are fractions from 0 to 1."""

    k: int
    n: int
    rate: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @classmethod
    def of(cls, k: int, n: int, confidence: float = CONFIDENCE) -> Rate:
        """The rate of `k` successes in `n` trials. Raises RequestError like `wilson`."""
        low, high = wilson(k, n, confidence)
        return cls(k, n, k / n, low, high, confidence)

    @classmethod
    def of_outcomes(cls, outcomes: Sequence[bool], confidence: float = CONFIDENCE) -> Rate:
        """The share of true `outcomes`."""
        return cls.of(sum(map(bool, outcomes)), len(outcomes), confidence)


@dataclass(frozen=True)
class PairedDifference:
    """After minus before, on the same prompts.

    `difference` and its interval `low` to `high` (paired bootstrap, percentile) are fractions from
    -1 to 1; `p` is exact McNemar, two-sided. `lost` pairs were true before and false after,
    `gained` the other way round.
    """

    n: int
    before: Rate
    after: Rate
    difference: float
    low: float
    high: float
    p: float
    gained: int
    lost: int
    confidence: float
    resamples: int
    seed: int

    @property
    def discordant(self) -> int:
        """How many prompts changed."""
        return self.gained + self.lost


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson score interval of a rate, as fractions.

    Raises RequestError when there is no trial, when `successes` is outside 0..n or when
    `confidence` is not strictly between 0 and 1.
    """
    _check_trials(n)
    if not 0 <= successes <= n:
        raise RequestError(f"{successes} successes in {n} trials; give a count from 0 to {n}")
    _check_fraction("confidence", confidence)
    interval = _scipy("stats").binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # At 0 and n the exact bound is 0 and 1; rounding leaves 1e-17 beside it.
    return (
        0.0 if successes == 0 else float(interval.low),
        1.0 if successes == n else float(interval.high),
    )


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact McNemar p-value of `b` pairs that changed one way and `c` the other.

    Without a discordant pair there is nothing against equality and p is 1. Raises RequestError for
    negative counts.
    """
    if b < 0 or c < 0:
        raise RequestError(f"discordant counts {b} and {c}; counts cannot be negative")
    return 1.0 if b + c == 0 else float(_scipy("stats").binomtest(b, b + c, 0.5).pvalue)


def paired_difference(
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two rates measured on the same prompts, in the same order.

    A pair's difference is -1, 0 or 1, so resampling n pairs with replacement is one multinomial
    draw of the three counts; the interval is that of the plain bootstrap and costs no n x resamples
    array. The same seed gives the same interval. Raises RequestError for no pairs, unequal lengths,
    `resamples` below 1 or a `confidence` outside (0, 1).
    """
    import numpy as np

    n = len(before)
    if n != len(after):
        raise RequestError(
            f"{n} results before and {len(after)} after; pair them over the same prompts"
        )
    _check_trials(n)
    _check_fraction("confidence", confidence)
    if resamples < 1:
        raise RequestError(f"{resamples} bootstrap resamples; ask for at least 1")
    gained = sum(bool(a) and not b for b, a in zip(before, after, strict=True))
    lost = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    shares = np.array([gained, lost, n - gained - lost]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    differences = (draws[:, 0] - draws[:, 1]) / n
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return PairedDifference(
        n=n,
        before=Rate.of_outcomes(before, confidence),
        after=Rate.of_outcomes(after, confidence),
        difference=(gained - lost) / n,
        low=float(low),
        high=float(high),
        p=mcnemar_exact(gained, lost),
        gained=gained,
        lost=lost,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def minimum_detectable_difference(
    n: int,
    *,
    discordant: float = 0.2,
    confidence: float = CONFIDENCE,
    power: float = 0.8,
) -> float:
    """Smallest difference of paired rates that `n` prompts show with this `power`, as a fraction.

    Normal approximation of McNemar's test (Connor 1987): the d that solves
    d * sqrt(n) = z_alpha * sqrt(psi) + z_power * sqrt(psi - d^2), where psi, the share of prompts
    whose outcome changes, is `discordant` or, since no difference is larger than it, d itself.
    1.0 means that even all prompts changing one way would not show. Raises RequestError for n
    below 1, a share outside (0, 1) or a power below one half.
    """
    _check_trials(n)
    for name, value in (("discordant", discordant), ("confidence", confidence), ("power", power)):
        _check_fraction(name, value)
    if power < 0.5:
        raise RequestError(f"power {power}; give at least 0.5, as in 0.8")
    z_alpha = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    z_power = NormalDist().inv_cdf(power)

    def surplus(d: float) -> float:
        psi = max(discordant, d)
        return d * math.sqrt(n) - z_alpha * math.sqrt(psi) - z_power * math.sqrt(psi - d * d)

    return 1.0 if surplus(1.0) <= 0 else float(_scipy("optimize").brentq(surplus, 0.0, 1.0))


def _scipy(part: str) -> Any:
    # scipy carries no types, and takes a second to import: it is had when a number is wanted.
    return import_module(f"scipy.{part}")


def _check_trials(n: int) -> None:
    if n < 1:
        raise RequestError(f"a rate over {n} replies is undefined; evaluate at least one prompt")


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise RequestError(f"{name} {value}; give a fraction between 0 and 1, as in 0.95")
