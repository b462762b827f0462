"""Means of paired changes with bootstrap intervals, and rank against a few random draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snt.errors import RequestError
from snt.evaluation.statistics import CONFIDENCE, RESAMPLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK = 1_000


@dataclass(frozen=True)
class Mean:
    """A mean, or a difference of means, and its percentile bootstrap interval, in the unit given.

    `n` counts the values of the (first) sample.
    """

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """As rates stand in reports."""
        return {"value": self.mean, "n": self.n, "interval": [self.low, self.high]}


@dataclass(frozen=True)
class Rank:
    """Where a mask stands among random draws: `position` 1 is the strongest of draws + 1.

    p = position / (draws + 1), the permutation p-value of the mask being one draw more; with few
    draws it cannot be small, and `smallest_p` says how small.
    """

    position: int
    draws: int

    @property
    def p(self) -> float:
        """One-sided."""
        return self.position / (self.draws + 1)

    @property
    def smallest_p(self) -> float:
        """What the strongest position gives."""
        return 1 / (self.draws + 1)

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "position": self.position,
            "of": self.draws + 1,
            "p": self.p,
            "smallest_p": self.smallest_p,
        }


def mean_of(
    values: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Mean:
    """Mean of values with its bootstrap interval; paired changes are one value a pair.

    The same seed gives the same interval. Raises RequestError for no value.
    """
    return difference_of_means(values, None, confidence, resamples, seed)


def difference_of_means(
    first: Sequence[float],
    second: Sequence[float] | None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Mean:
    """Mean of `first` minus mean of `second`, two independent samples, each resampled.

    Of changes, this is the difference in differences. Raises RequestError for an empty sample.
    """
    import numpy as np

    samples = [np.asarray(first, dtype=float)]
    if second is not None:
        samples.append(np.asarray(second, dtype=float))
    if not all(len(sample) for sample in samples):
        raise RequestError("a mean over 0 values is undefined; measure at least one prompt")
    generator = np.random.default_rng(seed)
    drawn: list[NDArray[Any]] = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        means = [
            sample[generator.integers(0, len(sample), size=(size, len(sample)))].mean(axis=1)
            for sample in samples
        ]
        drawn.append(means[0] - means[1] if second is not None else means[0])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    centre = samples[0].mean() - (samples[1].mean() if second is not None else 0.0)
    return Mean(float(centre), float(low), float(high), len(samples[0]))


def rank_among(value: float, draws: Sequence[float]) -> Rank:
    """Rank of `value`, where lower is stronger; a tie counts against it."""
    return Rank(1 + sum(other <= value for other in draws), len(draws))
