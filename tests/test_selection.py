"""Selections against brute force, and what each is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.anatomy import Anatomy
from snt.errors import RequestError
from snt.scores import NeuronScores, Scores
from snt.selection import consistency_order, contrast_order, subtract, within_budget

ANATOMY = Anatomy("llama", 2, d_model=8, d_ff=6, heads=2, kv_heads=1, head_dim=4)


@given(st.integers(0, 999), st.integers(8, 400))
def test_budget_takes_the_first_that_fit(seed: int, budget: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    places = [(layer, kind) for layer in (0, 1) for kind in ("ffn", "q", "k", "v")]
    order = {
        p: torch.randint(0, 5, (ANATOMY.size(p[1]),), generator=generator).double() for p in places
    }
    flat = sorted((float(v), p, i) for p in places for i, v in enumerate(order[p]))
    expected, used = set(), 0
    for _, place, i in flat:
        used += ANATOMY.neuron_parameters(place[1])
        if used > budget:
            break
        expected.add((place, i))
    if not expected:
        with pytest.raises(RequestError, match="holds no neuron"):
            within_budget(ANATOMY, order, budget)
        return
    chosen = within_budget(ANATOMY, order, budget)
    assert {(p, i) for p, t in chosen.items() for i in t.tolist()} == expected
    assert all(t.dtype == torch.int32 and torch.equal(t, t.sort().values) for t in chosen.values())


def _scores(rows: list[list[float]]) -> Scores:
    return Scores({(0, "q"): NeuronScores.of(torch.tensor(rows))})


def test_contrast_prefers_what_differs_to_what_is_always_loud() -> None:
    loud = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]
    harmful = [loud[:7] + [8.0], loud[:7] + [8.5]]
    order = contrast_order(_scores(harmful), _scores([loud, loud]))[0, "q"]
    assert int(order.argmin()) == 7
    assert int(consistency_order(_scores(harmful))[0, "q"].argmin()) == 0
    same = contrast_order(_scores([loud]), _scores([loud]))[0, "q"]
    assert not same.any()


def test_consistency_is_a_share() -> None:
    for wrong in (0.0, 1.5):
        with pytest.raises(RequestError, match="consistency"):
            consistency_order(_scores([[1.0]]), wrong)


def test_subtract() -> None:
    a = {(0, "q"): torch.tensor([1, 2], dtype=torch.int32), (1, "q"): torch.tensor([3])}
    b = {(0, "q"): torch.tensor([1, 2], dtype=torch.int32)}
    assert list(subtract(a, b)) == [(1, "q")]
