"""Rates and differences against closed forms, brute force and published values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from snt.errors import RequestError
from snt.evaluation.statistics import (
    Rate,
    mcnemar_exact,
    paired_difference,
    sign_flip,
    wilson,
)


def test_wilson_matches_the_closed_form() -> None:
    z = 1.959963984540054
    for k, n in [(0, 1), (1, 1), (3, 10), (50, 100), (99, 100), (7, 2000)]:
        p = k / n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        assert wilson(k, n) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_wilson_known_values() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


@given(st.integers(1, 300), st.data())
def test_wilson_holds_the_rate_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wide_low, wide_high = wilson(k, n, 0.99)
    assert wide_low <= low and high <= wide_high


@pytest.mark.parametrize(("k", "n"), [(0, 0), (1, 0), (-1, 5), (6, 5), (0, -3)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(RequestError):
        wilson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.1, float("nan")])
def test_confidence_is_a_fraction(confidence: float) -> None:
    with pytest.raises(RequestError, match="confidence"):
        wilson(1, 2, confidence)
    with pytest.raises(RequestError, match="confidence"):
        paired_difference([True], [False], confidence=confidence)


def test_rate_of_outcomes() -> None:
    rate = Rate.of_outcomes([True, False, True, True])
    assert (rate.k, rate.n, rate.rate) == (3, 4, 0.75)
    assert (rate.low, rate.high) == wilson(3, 4)
    with pytest.raises(RequestError, match="at least one prompt"):
        Rate.of_outcomes([])


@pytest.mark.parametrize(("b", "c"), list(itertools.product(range(9), repeat=2)))
def test_mcnemar_matches_brute_force(b: int, c: int) -> None:
    n = b + c
    observed = math.comb(n, b)
    total = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= observed)
    assert mcnemar_exact(b, c) == pytest.approx(total / 2**n)


def test_mcnemar_known_values() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 6) == pytest.approx(0.03125)
    assert mcnemar_exact(12, 2) == pytest.approx(0.012939453125)
    with pytest.raises(RequestError):
        mcnemar_exact(-1, 2)


def test_paired_difference_counts() -> None:
    before = [True, True, False, False, True]
    after = [True, False, True, True, True]
    result = paired_difference(before, after)
    assert (result.n, result.gained, result.lost, result.discordant) == (5, 2, 1, 3)
    assert result.difference == pytest.approx(0.2)
    assert (result.before.k, result.after.k) == (3, 4)
    assert result.p == mcnemar_exact(2, 1)
    assert result.low <= result.difference <= result.high


def test_paired_interval_matches_resampling_pairs() -> None:
    rng = np.random.default_rng(5)
    before, after = rng.random(120) < 0.3, rng.random(120) < 0.5
    difference = after.astype(int) - before.astype(int)
    picks = rng.integers(0, 120, size=(20_000, 120))
    brute = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    result = paired_difference(before.tolist(), after.tolist())
    # One prompt is 1/120; two independent sets of draws agree to about one.
    assert (result.low, result.high) == pytest.approx(tuple(brute), abs=1.01 / 120)


def test_paired_difference_repeats_and_mirrors() -> None:
    before = [i % 3 == 0 for i in range(90)]
    after = [i % 2 == 0 for i in range(90)]
    first = paired_difference(before, after, seed=7)
    assert first == paired_difference(before, after, seed=7)
    assert first.resamples == 10_000
    swapped = paired_difference(after, before, seed=7)
    assert swapped.difference == -first.difference
    assert swapped.p == first.p


def test_unchanged_pairs_have_no_difference() -> None:
    result = paired_difference([True, False] * 10, [True, False] * 10)
    assert (result.difference, result.low, result.high, result.p) == (0.0, 0.0, 0.0, 1.0)


def test_paired_difference_refuses_what_is_no_pair() -> None:
    with pytest.raises(RequestError, match="at least one prompt"):
        paired_difference([], [])
    with pytest.raises(RequestError, match="3 results before and 2 after"):
        paired_difference([True] * 3, [True] * 2)
    with pytest.raises(RequestError, match="resamples"):
        paired_difference([True], [True], resamples=0)


def test_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        before = rng.random(150) < 0.5
        flips = rng.random(150) < 0.3
        after = np.where(flips, ~before, before)
        result = paired_difference(before.tolist(), after.tolist(), resamples=1000, seed=trial)
        covered += result.low <= 0.0 <= result.high
    assert covered >= 180


@given(st.integers(1, 200), st.data())
def test_wilson_is_that_of_statsmodels(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    theirs = proportion_confint(k, n, method="wilson")
    assert wilson(k, n) == pytest.approx(theirs, abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == pytest.approx(mcnemar([[5, b], [c, 7]], exact=True).pvalue)
    # Clusters of one prompt each: the sign-flip test is exact McNemar.
    assert sign_flip([1] * b + [-1] * c + [0] * 3) == pytest.approx(mcnemar_exact(b, c))


def test_the_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(2)
    before, after = (rng.random(200) < share for share in (0.4, 0.6))
    theirs = bootstrap(
        (after.astype(int), before.astype(int)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    mine = paired_difference(before.tolist(), after.tolist(), resamples=20_000)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1.01 / 200)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_sign_flip_counts_every_flip(nets: list[int]) -> None:
    flips = itertools.product(*((net, -net) for net in nets))
    sums = [abs(sum(flip)) for flip in flips]
    brute = sum(s >= abs(sum(nets)) for s in sums) / len(sums)
    assert sign_flip(nets) == pytest.approx(brute)


def test_clusters_are_resampled_whole() -> None:
    rng = np.random.default_rng(4)
    clusters = rng.integers(0, 40, 150)
    before, after = rng.random(150) < 0.4, rng.random(40)[clusters] < 0.6
    change = after.astype(int) - before.astype(int)
    members = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    brute = []
    for _ in range(4000):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        brute.append(change[drawn].mean())
    found = paired_difference(before.tolist(), after.tolist(), clusters=clusters.tolist())
    assert found.clusters == len(members) and found.n == 150
    low, high = np.quantile(brute, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.015)
    alone = paired_difference(before.tolist(), after.tolist())
    # What is alike changes together: the interval by prompt is too narrow.
    assert found.high - found.low > alone.high - alone.low and found.p > alone.p
    assert alone.clusters == 150


def test_copies_of_a_prompt_count_once() -> None:
    before, after = [False] * 8, [True] * 8
    one = paired_difference(before, after, clusters=["same"] * 8)
    assert one.p == 1.0 and one.clusters == 1
    assert paired_difference(before, after).p == pytest.approx(2 / 2**8)
    with pytest.raises(RequestError, match="2 cluster names for 8 prompts"):
        paired_difference(before, after, clusters=["a", "b"])
