"""What chance gives when masks are drawn at random with given counts in every layer and kind.

For two masks the neurons in both are a sum of hypergeometric variables; for more, and for "in all
but one", mean and deviation follow from how likely one neuron, and a pair of neurons, is drawn
often enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np


@dataclass(frozen=True)
class Chance:
    """Neurons that chance gives: the mean and the standard deviation."""

    expected: float
    deviation: float

    @classmethod
    def of(cls, means: np.ndarray, variances: np.ndarray) -> Chance:
        """Of several places together: means and variances (P,) of independent draws."""
        return cls(float(means.sum()), sqrt(float(variances.sum())))

    def ratio(self, count: int) -> float | None:
        """`count` over the mean; None where chance gives nothing."""
        return count / self.expected if self.expected else None

    def distance(self, count: int) -> float | None:
        """Deviations that `count` lies above the mean; None where chance leaves no choice."""
        return (count - self.expected) / self.deviation if self.deviation else None


def chance_in_place(
    counts: Sequence[np.ndarray], sizes: np.ndarray, at_least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the neurons that at least `at_least` random masks hold, per place.

    `sizes` (P,) are the neurons of each place, and every entry of `counts` (P,) how many of them
    one mask draws. Exact: neurons of one place are exchangeable, so E[X] = n·P(one is held often
    enough) and E[X(X−1)] = n(n−1)·P(two both are).
    """
    n = np.asarray(sizes, dtype=np.float64)
    pairs = np.maximum(n * (n - 1), 1.0)
    misses = len(counts) - at_least
    one = np.zeros((misses + 1, *n.shape))
    two = np.zeros((misses + 1, misses + 1, *n.shape))
    one[0], two[0, 0] = 1.0, 1.0
    for drawn in counts:
        k = np.asarray(drawn, dtype=np.float64)
        both, neither = k * (k - 1) / pairs, (n - k) * (n - k - 1) / pairs
        single = k * (n - k) / pairs
        # Axis 0 counts how often the first neuron was left out, axis 1 the second.
        after = two * both
        after[1:] += two[:-1] * single
        after[:, 1:] += two[:, :-1] * single
        after[1:, 1:] += two[:-1, :-1] * neither
        two = after
        alone = one * (k / n)
        alone[1:] += one[:-1] * (1 - k / n)
        one = alone
    mean = n * one.sum(axis=0)
    variance = n * (n - 1) * two.sum(axis=(0, 1)) + mean - mean**2
    return mean, np.maximum(variance, 0.0)
