"""Controls hold as many neurons as the mask in every layer and kind, none of the mask's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.anatomy import Anatomy
from snt.errors import MismatchError
from snt.masks import NeuronMask
from snt.matched_masks import foundation_like, magnitude_like
from snt.random_masks import random_like
from snt.scores import NeuronScores, Scores

ANATOMY = Anatomy("llama", 2, d_model=8, d_ff=12, heads=2, kv_heads=1, head_dim=4)
PLACES = [(layer, kind) for layer in (0, 1) for kind in ("ffn", "q", "k", "v")]


def scores(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(
        {p: NeuronScores.of(torch.rand(5, ANATOMY.size(p[1]), generator=generator)) for p in PLACES}
    )


@st.composite
def masks(draw: st.DrawFn) -> NeuronMask:
    neurons = {}
    for place in PLACES:
        chosen = draw(st.sets(st.integers(0, ANATOMY.size(place[1]) - 1)))
        if chosen:
            neurons[place] = torch.tensor(sorted(chosen), dtype=torch.int32)
    return NeuronMask(ANATOMY, neurons, provenance={"fingerprint": "f"})


@given(masks(), st.integers(0, 99))
def test_matched_per_layer_and_kind(mask: NeuronMask, seed: int) -> None:
    held = scores(seed)
    drawn = random_like(mask, seed)
    assert {p: len(t) for p, t in drawn.neurons.items()} == {
        p: len(t) for p, t in mask.neurons.items()
    }
    for control in (magnitude_like(mask, held), foundation_like(mask, held, 0.8)):
        assert len(control.intersect(mask)) == 0
        assert control.provenance["fingerprint"] == "f"
        for place, mine in mask.neurons.items():
            others = ANATOMY.size(place[1]) - len(mine)
            assert len(control.neurons.get(place, ())) == min(len(mine), others)


def one_place(mean_ranks: list[int], mask: list[int]) -> tuple[Scores, NeuronMask]:
    """One prompt whose ffn neurons of layer 0 rank as given."""
    importance = -torch.tensor([mean_ranks], dtype=torch.float32)
    neurons = {(0, "ffn"): torch.tensor(mask, dtype=torch.int32)}
    return Scores({(0, "ffn"): NeuronScores.of(importance)}), NeuronMask(ANATOMY, neurons)


def test_magnitude_is_the_nearest_and_foundation_the_first() -> None:
    held, mask = one_place(list(range(12)), [8])
    # Ranks 7 to 10 share the bin of rank 8 but for its edge: the nearest is one of its neighbours.
    assert int(magnitude_like(mask, held).neurons[0, "ffn"]) in (7, 9, 10)
    assert foundation_like(mask, held).neurons[0, "ffn"].tolist() == [0]
    held, mask = one_place(list(range(12)), [0, 1])
    assert foundation_like(mask, held).neurons[0, "ffn"].tolist() == [2, 3]
    assert magnitude_like(mask, held).neurons[0, "ffn"].tolist() == [2, 3]


def test_scores_of_other_kinds_do_not_serve() -> None:
    held, _ = one_place(list(range(12)), [0])
    mask = NeuronMask(ANATOMY, {(1, "q"): torch.tensor([1], dtype=torch.int32)})
    for make in (magnitude_like, foundation_like):
        with pytest.raises(MismatchError, match="layer 1, q"):
            make(mask, held)
