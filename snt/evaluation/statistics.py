"""Intervals and paired tests for rates: how sure an evaluation may be of what it prints.

Rates get Wilson intervals, two conditions on the same prompts an exact McNemar test and a paired
bootstrap interval of their difference (Wilson 1927; McNemar 1947; Efron 1979). Prompts that are
near-duplicates of each other are one observation: test and bootstrap then go by cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
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
    -1 to 1. `lost` pairs were true before and false after, `gained` the other way round. `clusters`
    is how many independent groups the prompts form; interval and `p` go by these. With a group for
    every prompt, `p` is exact McNemar, two-sided.
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
    clusters: int
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
    check_trials(n)
    if not 0 <= successes <= n:
        raise RequestError(f"{successes} successes in {n} trials; give a count from 0 to {n}")
    check_fraction("confidence", confidence)
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


def sign_flip(nets: Sequence[int]) -> float:
    """Two-sided exact p-value of the sum of `nets` when each sign might as well be the other.

    `nets` are the gains less the losses of each cluster of pairs. The distribution of the sum is
    computed, not drawn: a convolution over the clusters. Of single pairs this is exact McNemar.
    """
    import numpy as np

    counts = Counter(abs(net) for net in nets if net)
    # Probability of every sum from -total to total.
    spread = np.ones(1)
    for size, count in sorted(counts.items()):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = _scipy("stats").binom.pmf(np.arange(count + 1), count, 0.5)
        spread = np.convolve(spread, flips)
    total = len(spread) // 2
    sums = np.arange(-total, total + 1)
    return min(1.0, float(spread[np.abs(sums) >= abs(sum(nets))].sum()))


def paired_difference(
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two rates measured on the same prompts, in the same order.

    `clusters` names each prompt's cluster; left out, every prompt is one of its own. Clusters are
    resampled whole. Those of one size and one net change are alike, so a resample is a multinomial
    draw of how often each sort comes: that is the plain bootstrap, and costs no clusters x
    resamples array. The same seed gives the same interval. Raises RequestError for no pairs,
    unequal lengths, `resamples` below 1 or a `confidence` outside (0, 1).
    """
    import numpy as np

    n = len(before)
    if n != len(after):
        raise RequestError(
            f"{n} results before and {len(after)} after; pair them over the same prompts"
        )
    check_trials(n)
    check_fraction("confidence", confidence)
    if resamples < 1:
        raise RequestError(f"{resamples} bootstrap resamples; ask for at least 1")
    named = range(n) if clusters is None else clusters
    if len(named) != n:
        raise RequestError(f"{len(named)} cluster names for {n} prompts; give one for each")
    changes = [bool(a) - bool(b) for b, a in zip(before, after, strict=True)]
    sizes = Counter(named)
    nets = dict.fromkeys(named, 0)
    for name, change in zip(named, changes, strict=True):
        nets[name] += change
    sorts = Counter((sizes[name], net) for name, net in nets.items())
    # An order of its own, so that equal results are drawn alike.
    kinds = sorted(sorts, key=lambda kind: (kind[0], not kind[1], -kind[1]))
    shares = np.array([sorts[kind] for kind in kinds]) / len(nets)
    draws = np.random.default_rng(seed).multinomial(len(nets), shares, size=resamples)
    prompts, net = np.array(kinds).T
    tail = (1 - confidence) / 2
    low, high = np.quantile((draws @ net) / (draws @ prompts), [tail, 1 - tail])
    gained, lost = changes.count(1), changes.count(-1)
    return PairedDifference(
        n=n,
        before=Rate.of_outcomes(before, confidence),
        after=Rate.of_outcomes(after, confidence),
        difference=(gained - lost) / n,
        low=float(low),
        high=float(high),
        p=mcnemar_exact(gained, lost) if len(nets) == n else sign_flip(list(nets.values())),
        gained=gained,
        lost=lost,
        clusters=len(nets),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _scipy(part: str) -> Any:
    # scipy carries no types, and takes a second to import: it is had when a number is wanted.
    return import_module(f"scipy.{part}")


def check_trials(n: int) -> None:
    """Raises RequestError for fewer than one."""
    if n < 1:
        raise RequestError(f"a rate over {n} replies is undefined; evaluate at least one prompt")


def check_fraction(name: str, value: float) -> None:
    """Raises RequestError for what is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise RequestError(f"{name} {value}; give a fraction between 0 and 1, as in 0.95")
