"""Minimum detectable differences against brute force, simulation and published approximations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, fisher_exact
from statsmodels.stats.proportion import power_proportions_2indep

from snt.errors import RequestError
from snt.evaluation import power
from snt.evaluation.power import (
    change_detectable,
    detectable_beside,
    paired_detectable,
    unpaired_detectable,
)
from snt.evaluation.statistics import mcnemar_exact


def _paired_power(n: int, discordant: float, d: float) -> float:
    """Brute force over every count of gains and losses."""
    psi = max(discordant, d)
    up, down = (psi + d) / 2, (psi - d) / 2
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if mcnemar_exact(b, c) <= 0.05:
                ways = math.comb(n, b) * math.comb(n - b, c)
                total += ways * up**b * down**c * (1 - psi) ** (n - b - c)
    return total


@pytest.mark.parametrize(("n", "discordant"), [(8, 0.2), (15, 0.4), (25, 0.0), (25, 0.6)])
def test_paired_has_exactly_its_power(n: int, discordant: float) -> None:
    assert _paired_power(n, discordant, paired_detectable(n, discordant)) == pytest.approx(
        0.8, abs=1e-4
    )


def _unpaired_power(n: int, first: float, second: float) -> float:
    total = 0.0
    for x in range(n + 1):
        for y in range(n + 1):
            if fisher_exact([[x, n - x], [y, n - y]]).pvalue <= 0.05 + 1e-12:
                total += float(binom.pmf(x, n, first) * binom.pmf(y, n, second))
    return total


@pytest.mark.parametrize(("n", "rate"), [(8, 0.3), (20, 0.1), (20, 0.9), (24, 0.5), (20, 0.0)])
def test_unpaired_has_exactly_its_power(n: int, rate: float) -> None:
    found = unpaired_detectable(n, rate)
    assert found is not None
    # Of going up and going down, the nearer: one of the two has the power.
    powers = [
        _unpaired_power(n, rate, rate + s * found) for s in (1, -1) if 0 <= rate + s * found <= 1
    ]
    assert any(value == pytest.approx(0.8, abs=1e-4) for value in powers)


def test_where_exact_ends_the_approximation_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = paired_detectable(2000, 0.1), unpaired_detectable(500, 0.1)
    monkeypatch.setattr(power, "PAIRED_EXACT_UP_TO", 0)
    monkeypatch.setattr(power, "UNPAIRED_EXACT_UP_TO", 0)
    normal = paired_detectable(2000, 0.1), unpaired_detectable(500, 0.1)
    assert exact[0] == pytest.approx(normal[0], rel=0.03)
    assert exact[1] == pytest.approx(normal[1], rel=0.1) and exact[1] > normal[1]
    # Connor (1987): the equation that the approximation solves.
    d, psi = normal[0], 0.1
    needed = (1.959964 * math.sqrt(psi) + 0.841621 * math.sqrt(psi - d * d)) ** 2 / d**2
    assert needed == pytest.approx(2000, rel=1e-3)
    assert paired_detectable(10, 0.0) < 1


def test_the_approximation_is_that_of_statsmodels() -> None:
    found = unpaired_detectable(1500, 0.2)
    assert found is not None
    theirs = power_proportions_2indep(-found, 0.2, 1500, ratio=1.0, alpha=0.05).power
    assert theirs == pytest.approx(0.8, abs=0.002)


def test_paired_in_simulation() -> None:
    n, discordant = 400, 0.2
    d = paired_detectable(n, discordant)
    up, down = (discordant + d) / 2, (discordant - d) / 2
    draws = np.random.default_rng(1).multinomial(n, [up, down, 1 - discordant], size=3000)
    assert np.mean([mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in draws]) == pytest.approx(
        0.8, abs=0.025
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99).map(lambda percent: percent / 100))
def test_more_prompts_show_less(n: int, share: float) -> None:
    few, many = paired_detectable(n, share), paired_detectable(4 * n + 20, share)
    assert 0 < many <= few <= 1
    first, second = unpaired_detectable(n, share), unpaired_detectable(4 * n + 20, share)
    assert second is not None and (first is None or second < first)


def test_too_few_for_anything() -> None:
    # Five pairs that all change one way have p = 1/16.
    assert paired_detectable(5) == 1.0 and paired_detectable(6) < 1.0
    assert unpaired_detectable(2, 0.5) is None


@pytest.mark.parametrize(("n", "gained", "lost"), [(20, 0, 0), (20, 3, 15), (24, 4, 4)])
def test_beside_the_churn_of_a_comparison(n: int, gained: int, lost: int) -> None:
    d = detectable_beside(n, gained, lost)
    assert _paired_power(n, 2 * min(gained, lost) / n + d, d) == pytest.approx(0.8, abs=1e-4)
    assert d == detectable_beside(n, lost, gained)


def test_a_large_effect_is_not_taken_for_churn() -> None:
    # All of 120 prompts changed one way: nothing says that any change without an effect.
    assert detectable_beside(120, 0, 117) == detectable_beside(120, 0, 0) < 0.07
    assert detectable_beside(120, 20, 20) > 0.12 and detectable_beside(4, 2, 2) == 1.0
    assert detectable_beside(30_000, 900, 900) == pytest.approx(
        detectable_beside(15_000, 450, 450) / math.sqrt(2), rel=0.05
    )
    with pytest.raises(RequestError, match="counts of them"):
        detectable_beside(10, 9, 2)


def test_a_mean_from_its_interval() -> None:
    assert change_detectable(-1.96, 1.96) == pytest.approx(2.8016, abs=1e-3)
    assert change_detectable(0.1, 0.1) == 0.0


def test_refusals() -> None:
    for call in (
        lambda: paired_detectable(0),
        lambda: paired_detectable(10, 1.0),
        lambda: paired_detectable(10, -0.1),
        lambda: unpaired_detectable(0, 0.5),
        lambda: unpaired_detectable(10, 1.5),
        lambda: paired_detectable(10, power=0.3),
        lambda: unpaired_detectable(10, 0.5, confidence=95.0),
    ):
        with pytest.raises(RequestError, match="give|at least one prompt"):
            call()
