"""The two losses against plain transcriptions, and where a step reads them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snt.objective import (
    OPENING,
    OPENING_SHARE,
    Kept,
    Pair,
    most_likely,
    refusal_loss,
    retain_loss,
    right_padded,
    step_of,
)


def test_a_step_reads_the_response_and_its_end_only() -> None:
    step = step_of([Pair([5, 6, 7, 8, 2], 3), Pair([5, 9, 2], 2)], [], 2, 2, 0)
    # Padding is the end-of-turn token here: attention masks it, the real one stays a target.
    assert step.batch.real.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert step.refuse_at.tolist() == [[0, 2], [0, 3], [1, 1]]
    assert step.targets.tolist() == [8, 2, 2]
    torch.testing.assert_close(step.refuse_weights, torch.tensor([0.25, 0.25, 0.5]))


def test_the_opening_weighs_as_much_as_all_the_rest() -> None:
    length = OPENING + 20
    step = step_of([Pair([1] * (length + 4), 4)], [], 0, 1, 0)
    assert len(step.refuse_weights) == length
    torch.testing.assert_close(float(step.refuse_weights[:OPENING].sum()), OPENING_SHARE)
    torch.testing.assert_close(float(step.refuse_weights.sum()), 1.0)


def test_kept_prompts_are_read_from_the_last_prompt_token_on() -> None:
    top = most_likely(torch.randn(3, 7))
    step = step_of([], [Kept([3, 4, 5, 6], 1, *top)], 0, 0, 1)
    assert step.retain_at.tolist() == [[0, 1], [0, 2], [0, 3]]
    assert step.top_ids.shape == (3, 7)
    torch.testing.assert_close(float(step.retain_weights.sum()), 1.0)


def test_refusal_loss_is_weighted_cross_entropy() -> None:
    logits, targets = torch.randn(4, 9), torch.tensor([1, 0, 8, 3])
    weights = torch.tensor([0.5, 0.1, 0.2, 0.2])
    by_hand = sum(
        -w * torch.log_softmax(row, 0)[t]
        for w, row, t in zip(weights, logits, targets, strict=True)
    )
    torch.testing.assert_close(refusal_loss(logits, targets, weights), by_hand)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 300))
def test_retain_loss_is_zero_unchanged_and_bounded_by_the_divergence(
    seed: int, vocabulary: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    before, now = (2 * torch.randn(3, vocabulary, generator=draw) for _ in range(2))
    top = most_likely(before)
    weights = torch.full((3,), 1 / 3)
    unchanged = float(retain_loss(before, *top, weights))
    assert abs(unchanged) < 1e-5
    log_before, log_now = before.log_softmax(-1), now.log_softmax(-1)
    full = float((log_before.exp() * (log_before - log_now)).sum(-1).mean())
    coarse = float(retain_loss(now, *top, weights))
    assert -1e-5 < coarse <= full + 1e-3
    if vocabulary <= top[0].shape[1]:
        torch.testing.assert_close(coarse, full, rtol=1e-3, atol=1e-3)


def test_right_padding() -> None:
    batch = right_padded([[1, 2], [3]], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2], [3, 9]]
    assert batch.real.tolist() == [[True, True], [True, False]]
