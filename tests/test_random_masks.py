"""Random masks: matched in every place, drawn evenly, the same for a seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from snt.anatomy import Anatomy
from snt.atomic import sha256_of
from snt.errors import RequestError
from snt.masks import NeuronMask, load_mask, save_mask
from snt.random_masks import random_like

ANATOMY = Anatomy("llama", 3, d_model=8, d_ff=40, heads=4, kv_heads=2, head_dim=4)
COUNTS = {(0, "ffn"): 10, (1, "ffn"): 40, (1, "q"): 1, (2, "k"): 3, (2, "v"): 0}
MASK = NeuronMask(
    ANATOMY,
    {place: torch.arange(count, dtype=torch.int32) for place, count in COUNTS.items()},
    provenance={"model": {"id": "m"}, "fingerprint": "f", "seed": 1},
)


def test_matched_in_every_layer_and_kind() -> None:
    drawn = random_like(MASK, 3)
    assert {place: len(indices) for place, indices in drawn.neurons.items()} == COUNTS
    assert drawn.parameters == MASK.parameters
    assert drawn.provenance["model"] == {"id": "m"} and drawn.provenance["fingerprint"] == "f"
    assert drawn.provenance["seed"] == 3
    assert drawn.provenance["parents"] == [dict(MASK.provenance)]


def test_a_seed_gives_the_same_bytes_and_another_other_neurons(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_mask(random_like(MASK, seed), tmp_path / name)
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    first, other = (load_mask(tmp_path / name).neurons[0, "ffn"] for name in "ac")
    assert not torch.equal(first, other)


def test_draws_are_even() -> None:
    seen = torch.zeros(40)
    for seed in range(400):
        seen[random_like(MASK, seed).neurons[0, "ffn"].long()] += 1
    # 10 of 40 in 400 draws: 100 each, with a standard deviation of 8.7.
    assert seen.sum() == 4000 and seen.min() > 60 and seen.max() < 140


def test_empty_masks_and_seeds_that_are_none() -> None:
    assert len(random_like(NeuronMask(ANATOMY, {}), 0)) == 0
    for seed in (-1, 2**63):
        with pytest.raises(RequestError, match="seed"):
            random_like(MASK, seed)
