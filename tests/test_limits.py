"""Limits by kind and layer: read as written, held, and filled by the next in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.anatomy import KINDS, Anatomy
from snt.errors import RequestError
from snt.limits import Limits
from snt.scores import NeuronScores, Scores
from snt.selection import within_budget, within_limits
from snt.selection_rules import Selection, select

ANATOMY = Anatomy("llama", 3, d_model=8, d_ff=12, heads=2, kv_heads=1, head_dim=4)
PLACES = [(layer, kind) for layer in range(3) for kind in KINDS]


def test_numbers_and_shares() -> None:
    limits = Limits.parse("ffn=25%,q=7,layer=50%")
    assert limits.of_kind(ANATOMY, "ffn") == 9 and limits.of_kind(ANATOMY, "q") == 7
    assert limits.of_kind(ANATOMY, "v") is None and limits.of_layer(ANATOMY) == 14
    wide = Anatomy("llama", 1, 8, 1000, 2, 1, 4)
    for tenths in range(1000):
        assert Limits.parse(f"ffn={tenths / 10}%").of_kind(wide, "ffn") == tenths


@pytest.mark.parametrize(
    "text", ["", "ffn", "ffn=", "ffn=x", "ffn=-1", "ffn=101%", "ffn=0.5", "o=3", "q=1,q=2", "q=1,,"]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--at-most"):
        Limits.parse(text)


limits_ = st.dictionaries(st.sampled_from([*KINDS, "layer"]), st.integers(0, 20), min_size=1)


@given(limits_, st.integers(0, 999), st.integers(24, 900))
def test_a_budget_with_limits_against_brute_force(
    most: dict[str, int], seed: int, budget: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    order = {p: torch.randint(0, 6, (ANATOMY.size(p[1]),), generator=draw).double() for p in PLACES}
    expected, used = set(), 0
    line = sorted((float(v), p, i) for p in PLACES for i, v in enumerate(order[p]))
    for _, place, index in line:
        same_kind = sum(1 for p, _ in expected if p[1] == place[1])
        same_layer = sum(1 for p, _ in expected if p[0] == place[0])
        if same_kind >= most.get(place[1], 99) or same_layer >= most.get("layer", 999):
            continue
        used += ANATOMY.neuron_parameters(place[1])
        if used > budget:
            break
        expected.add((place, index))
    text = ",".join(f"{name}={number}" for name, number in most.items())
    chosen = within_budget(ANATOMY, order, budget, Limits.parse(text))
    assert {(p, i) for p, at in chosen.items() for i in at.tolist()} == expected


def test_the_budget_is_filled_by_the_next_in_order() -> None:
    order = {p: torch.arange(ANATOMY.size(p[1])).double() for p in PLACES}
    chosen = within_budget(ANATOMY, order, 240, Limits.parse("ffn=2"))
    used = sum(len(at) * ANATOMY.neuron_parameters(kind) for (_, kind), at in chosen.items())
    assert used == 240 and sum(len(at) for (_, kind), at in chosen.items() if kind == "ffn") == 2


def test_a_set_keeps_its_best() -> None:
    order = {(0, "q"): torch.tensor([3.0, 0.0, 1.0, 2.0, 9, 9, 9, 9]).double()}
    chosen = {(0, "q"): torch.tensor([0, 2, 3], dtype=torch.int32)}
    assert within_limits(ANATOMY, order, chosen, Limits.parse("q=2"))[0, "q"].tolist() == [2, 3]
    assert within_limits(ANATOMY, order, {}, Limits.parse("q=2")) == {}


@pytest.mark.parametrize("rule", ["budget=400", "epsilon=0.0", "topk=ffn:12,attn:8"])
def test_every_selection_keeps_its_limits(rule: str) -> None:
    draw = torch.Generator().manual_seed(3)
    scores = Scores(
        {p: NeuronScores.of(torch.rand(4, ANATOMY.size(p[1]), generator=draw)) for p in PLACES}
    )
    limits = Limits.parse("ffn=10%,layer=4")
    chosen, _ = select(
        ANATOMY, scores, None, Selection.parse(rule), "none", 1.0, 10_000, limits=limits
    )
    assert sum(len(at) for (_, kind), at in chosen.items() if kind == "ffn") <= 3
    for layer in range(3):
        assert sum(len(at) for (at_layer, _), at in chosen.items() if at_layer == layer) <= 4
    with pytest.raises(RequestError, match="leaves no neuron"):
        none = Limits.parse("layer=0")
        select(ANATOMY, scores, None, Selection.parse(rule), "none", 1.0, 10_000, limits=none)
