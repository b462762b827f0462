"""Intervals and tests over clusters, against brute force and against what they reduce to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snt.evaluation.clustered import clustered_rate
from snt.evaluation.statistics import Rate

OUTCOMES = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_singletons_are_the_plain_interval(outcomes: list[bool]) -> None:
    assert clustered_rate(outcomes, range(len(outcomes))) == Rate.of_outcomes(outcomes)


@settings(deadline=None)
@given(OUTCOMES)
def test_the_interval_is_never_narrower_and_holds_the_rate(pairs: list[tuple[bool, int]]) -> None:
    outcomes, clusters = [o for o, _ in pairs], [c for _, c in pairs]
    plain, found = Rate.of_outcomes(outcomes), clustered_rate(outcomes, clusters)
    assert (found.k, found.n, found.rate) == (plain.k, plain.n, plain.rate)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.high - found.low >= plain.high - plain.low - 1e-12


def test_attempts_that_agree_count_once() -> None:
    requests = [True, False, False, True, False, False]
    outcomes = [outcome for outcome in requests for _ in range(20)]
    clusters = [row for row in range(6) for _ in range(20)]
    found, alone = clustered_rate(outcomes, clusters), Rate.of_outcomes(requests)
    assert found.low == pytest.approx(alone.low, abs=0.03)
    assert found.high == pytest.approx(alone.high, abs=0.03)
    none = clustered_rate([False] * 120, clusters)
    assert none.low == 0 and none.high == pytest.approx(Rate.of(0, 6).high)


def test_coverage_of_clustered_draws() -> None:
    """Beta-binomial requests of mean 0.3: the plain interval misses too often, this does not."""
    generator = np.random.default_rng(1)
    clusters = [row for row in range(40) for _ in range(10)]
    plain = found = 0
    for _ in range(200):
        chances = generator.beta(0.6, 1.4, size=40).repeat(10)
        outcomes = (generator.random(400) < chances).tolist()
        alone, mine = Rate.of_outcomes(outcomes), clustered_rate(outcomes, clusters)
        plain += alone.low <= 0.3 <= alone.high
        found += mine.low <= 0.3 <= mine.high
    assert plain < 150 < 182 <= found
