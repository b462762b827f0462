"""Intervals and tests over clusters, against brute force and against what they reduce to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snt.evaluation.clustered import clustered_difference, clustered_rate
from snt.evaluation.statistics import Rate, paired_difference

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


def test_a_difference_resamples_whole_clusters() -> None:
    before = [True] * 30
    after = [False] * 10 + [True] * 20
    clusters = [row for row in range(3) for _ in range(10)]
    found = clustered_difference(before, after, clusters)
    plain = paired_difference(before, after)
    assert found.difference == plain.difference and (found.gained, found.lost) == (0, 10)
    # One request of three changed: its sign alone turns, so nothing is shown.
    assert found.p == 1.0 and plain.p < 0.01
    assert found.low == -1.0 and found.high == 0.0
    assert clustered_difference(before, after, clusters) == found


def test_sign_patterns_by_brute_force_and_by_chance() -> None:
    generator = np.random.default_rng(2)
    before = (generator.random(60) < 0.7).tolist()
    after = (generator.random(60) < 0.3).tolist()
    few = [number % 8 for number in range(60)]
    sums = np.zeros(8)
    np.add.at(sums, few, np.array(after, int) - np.array(before, int))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()))
    assert clustered_difference(before, after, few).p == pytest.approx(exact)
    many = list(range(60))
    by_chance = clustered_difference(before, after, many)
    assert by_chance.p == pytest.approx(paired_difference(before, after).p, abs=0.01)
