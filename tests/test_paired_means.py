"""Intervals of means against scipy's bootstrap, and ranks among draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from snt.errors import RequestError
from snt.evaluation.paired_means import difference_of_means, mean_of, rank_among

DRAW = np.random.default_rng(1)
FIRST, SECOND = DRAW.normal(-1.0, 0.5, 40).tolist(), DRAW.normal(0.2, 0.7, 30).tolist()


def test_interval_of_a_mean_is_the_plain_bootstrap() -> None:
    mine = mean_of(FIRST)
    other = bootstrap(
        (FIRST,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(7)
    ).confidence_interval
    assert mine.mean == pytest.approx(np.mean(FIRST)) and mine.n == 40
    assert (mine.low, mine.high) == pytest.approx((other.low, other.high), abs=0.01)
    assert mine == mean_of(FIRST) != mean_of(FIRST, seed=1)


def test_interval_of_a_difference_resamples_both() -> None:
    mine = difference_of_means(FIRST, SECOND)
    other = bootstrap(
        (FIRST, SECOND),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert mine.mean == pytest.approx(np.mean(FIRST) - np.mean(SECOND))
    assert (mine.low, mine.high) == pytest.approx((other.low, other.high), abs=0.015)


def test_interval_covers_as_often_as_it_says() -> None:
    held = 0
    for number in range(200):
        sample = np.random.default_rng(number).normal(0.3, 1.0, 30).tolist()
        found = mean_of(sample, resamples=500)
        held += found.low <= 0.3 <= found.high
    assert 178 <= held <= 200


def test_nothing_to_average() -> None:
    for samples in (([], None), ([1.0], [])):
        with pytest.raises(RequestError, match="0 values"):
            difference_of_means(*samples)


def test_rank_is_one_more_than_the_draws_that_are_as_strong() -> None:
    best = rank_among(-2.0, [-1.0, 0.0, 0.5, -1.9, 1.0])
    assert (best.position, best.p, best.smallest_p) == (1, 1 / 6, 1 / 6)
    assert rank_among(-1.0, [-1.0, 0.0]).position == 2
    assert rank_among(0.0, []).p == 1.0
