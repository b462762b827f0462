"""The verdict on made-up changes: what it takes to be specific, and each way not to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from snt.errors import RequestError
from snt.evaluation.verdict import ArmChange, Verdict, changes, judge_arms

N = 40
NEVER, OFTEN = [False] * N, [True] * 20 + [False] * 20


def arm(name: str, harmful: float, harmless: float = 0.0, **other: Any) -> ArmChange:
    """An arm whose changes scatter around two means."""
    draw = np.random.default_rng(len(name) + sum(map(ord, name)))
    values = {"refused": NEVER, "perplexity": 0.05, "drawn": name.startswith("random"), **other}
    return ArmChange(
        name,
        (harmful + draw.normal(0, 0.3, N)).tolist(),
        (harmless + draw.normal(0, 0.3, N)).tolist(),
        **values,
    )


MASK = arm("mask", -1.5)
CONTROLS = [
    *(arm(f"random-{n}", 0.1 - 0.05 * n) for n in range(1, 6)),
    arm("magnitude", -0.4, -0.3),
    arm("foundation", -9.0, -9.0, perplexity=400.0),
]


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.holds]


def test_specific_where_nothing_else_does_as_much() -> None:
    verdict = judge_arms(MASK, CONTROLS, NEVER)
    assert verdict.specific and verdict.sentence.startswith("specific effect")
    assert verdict.rank.position == 1 and verdict.rank.p == pytest.approx(1 / 6)
    assert "below 0.17" in verdict.sentence and "log-odds alone" in verdict.sentence
    assert verdict.left_out == ("foundation",) and not verdict.rate_counts
    assert "\n" not in verdict.sentence
    document = verdict.as_json()
    assert document["specific"] is True and document["rank_among_draws"]["of"] == 6


def test_a_random_mask_that_does_as_much() -> None:
    verdict = judge_arms(MASK, [arm("random-9", -1.5), *CONTROLS], NEVER)
    assert not verdict.specific and failed(verdict) == ["more than without random-9"]
    assert "not more than without random-9" in verdict.sentence


def test_harmless_prompts_that_change_as_much() -> None:
    verdict = judge_arms(arm("mask", -1.5, -1.5), CONTROLS, NEVER)
    assert failed(verdict) == ["more than on harmless prompts"]


def test_a_control_that_tells_prompts_apart_as_little() -> None:
    apart = arm("random-9", -0.5, 1.5)
    verdict = judge_arms(MASK, [*CONTROLS, apart], NEVER)
    assert failed(verdict) == ["more than on harmless prompts"]
    assert "without random-9 by -2." in verdict.checks[-1].says


def test_language_lost_comes_first() -> None:
    verdict = judge_arms(replace(MASK, perplexity=0.5), CONTROLS, NEVER)
    assert failed(verdict) == ["language kept"]
    assert verdict.sentence.startswith("no specific effect: it carries language")
    same = judge_arms(replace(MASK, perplexity=0.5), [arm("random-9", -1.5), *CONTROLS], NEVER)
    assert "not more than without random-9" in same.sentence


def test_refusals_that_rise() -> None:
    verdict = judge_arms(arm("mask", 1.5), CONTROLS, NEVER)
    assert not verdict.specific and "rise" in verdict.sentence


def test_the_rate_counts_where_a_fall_could_be_seen() -> None:
    controls = [replace(control, refused=OFTEN) for control in CONTROLS[:-1]]
    assert judge_arms(MASK, controls, OFTEN).specific
    same = judge_arms(replace(MASK, refused=OFTEN), controls, OFTEN)
    assert same.rate_counts and failed(same) == ["refusal rate falls too"]
    assert "50.0 to 50.0%" in same.sentence and "log-odds alone" not in same.sentence
    low = judge_arms(MASK, [*controls, arm("random-9", 0.0)], OFTEN)
    assert failed(low) == ["refusal rate falls too"]


def test_no_random_mask_that_keeps_its_language() -> None:
    ruined = [replace(control, perplexity=3.0) for control in CONTROLS]
    verdict = judge_arms(MASK, ruined, NEVER)
    assert not verdict.specific and len(verdict.left_out) == len(CONTROLS)


def test_every_prompt_refused_is_no_special_case() -> None:
    assert judge_arms(MASK, CONTROLS, [True] * N).rate_counts


def test_too_few_prompts() -> None:
    few = replace(MASK, harmful=MASK.harmful[:5])
    with pytest.raises(RequestError, match="5 held-out"):
        judge_arms(few, CONTROLS, NEVER)


def test_a_mask_like_the_controls_is_seldom_specific() -> None:
    found = 0
    for number in range(60):
        draw = np.random.default_rng(number)
        arms = [
            ArmChange(
                f"arm-{n}",
                draw.normal(0, 1, N).tolist(),
                draw.normal(0, 1, N).tolist(),
                NEVER,
                0.0,
                drawn=True,
            )
            for n in range(6)
        ]
        found += judge_arms(arms[0], arms[1:], NEVER).specific
    assert found <= 1


def test_changes_are_after_minus_before() -> None:
    assert changes([1.0, 2.0], [0.5, 4.0]) == (-0.5, 2.0)
