"""Rates over attempts that hang together: several templates tried on each of a few requests.

Twenty templates on ten requests are not two hundred independent trials. Intervals here take the
requests as the sample, and every request with all of its attempts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from snt.evaluation.statistics import CONFIDENCE, Rate


def clustered_rate(
    outcomes: Sequence[bool], clusters: Sequence[int], confidence: float = CONFIDENCE
) -> Rate:
    """The share of true `outcomes`, (n,), with an interval that knows their `clusters`, (n,).

    Wilson's interval at the effective sample size n / design effect (Korn and Graubard 1998), at
    most n. Where all outcomes are alike the effect cannot be seen, and the clusters count as the
    sample. Singletons give the plain Wilson interval. Raises RequestError for no outcome.
    """
    plain = Rate.of_outcomes(outcomes, confidence)
    size = _effective(outcomes, clusters)
    if size >= plain.n:
        return plain
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    centre = (plain.rate + z * z / (2 * size)) / (1 + z * z / size)
    spread = math.sqrt(plain.rate * (1 - plain.rate) / size + (z / (2 * size)) ** 2)
    half = spread * z / (1 + z * z / size)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Rate(
        plain.k,
        plain.n,
        plain.rate,
        0.0 if plain.k == 0 else low,
        1.0 if plain.k == plain.n else high,
        confidence,
    )


def _effective(outcomes: Sequence[bool], clusters: Sequence[int]) -> float:
    """Effective sample size of the share of true outcomes, at most n."""
    n = len(outcomes)
    share = sum(map(bool, outcomes)) / n
    sums: dict[int, float] = {}
    for outcome, name in zip(outcomes, clusters, strict=True):
        sums[name] = sums.get(name, 0.0) + bool(outcome) - share
    count = len(sums)
    if count == n:
        return n
    if share in (0.0, 1.0) or count == 1:
        return count
    # Both with the correction for the mean that was estimated too, so that singletons give one.
    variance = count / (count - 1) * sum(value**2 for value in sums.values()) / n**2
    alone = share * (1 - share) / (n - 1)
    return min(float(n), n * alone / variance) if variance > 0 else n
