"""Deltas beside frozen weights compute what a changed weight would; ablation what a zero one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snt.ablation import deactivated
from snt.backend import Batch, get_backend
from snt.deltas import Deltas, digest_of, masked_slices
from snt.masks import NeuronMask

BATCH = Batch(torch.arange(1, 21).reshape(2, 10), torch.ones(2, 10, dtype=torch.bool))
NEURONS = {
    (0, "ffn"): [1, 40],
    (1, "ffn"): [0],
    (0, "q"): [3, 30],
    (1, "k"): [15],
    (1, "v"): [0, 7],
}


@pytest.fixture
def model(pico: Path) -> Any:
    return get_backend("full").load(pico, torch.float32)


def _mask(model: Any) -> NeuronMask:
    neurons = {place: torch.tensor(at, dtype=torch.int32) for place, at in NEURONS.items()}
    return NeuronMask(model.anatomy, neurons)


def _random_deltas(model: Any) -> Deltas:
    deltas = Deltas.zeros(masked_slices(_mask(model)), model)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in deltas.values:
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    return deltas


def test_slices_of_a_mask() -> None:
    from snt.anatomy import Anatomy

    anatomy = Anatomy("llama", 2, 32, 48, 4, 2, 8)
    slices = masked_slices(
        NeuronMask(anatomy, {(1, "ffn"): torch.tensor([4, 9], dtype=torch.int32)})
    )
    assert {str(key): at.tolist() for key, at in slices.items()} == {
        "layers.1.mlp.down_proj.cols": [4, 9],
        "layers.1.mlp.gate_proj.rows": [4, 9],
        "layers.1.mlp.up_proj.rows": [4, 9],
    }


def test_attached_deltas_equal_changed_weights(model: Any) -> None:
    before = model.hidden(BATCH)
    deltas = _random_deltas(model)
    with deltas.attached(model):
        attached = model.hidden(BATCH)
        deltas.enabled = False
        assert torch.equal(model.hidden(BATCH), before)
    assert torch.equal(model.hidden(BATCH), before)
    with torch.no_grad():
        for key, (at, delta) in deltas.tensors().items():
            weight = model.module(key.layer, key.module).weight
            (weight if key.axis == "rows" else weight.T)[at.long()] += (
                delta if key.axis == "rows" else delta.T
            )
    torch.testing.assert_close(attached, model.hidden(BATCH), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(attached, before, atol=1e-3)


def test_only_deltas_get_a_gradient(model: Any) -> None:
    deltas = _random_deltas(model)
    with deltas.attached(model):
        model.logits(model.hidden(BATCH)).square().mean().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in deltas.values)
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_deactivation_equals_zero_weights(model: Any) -> None:
    before = model.hidden(BATCH)
    with deactivated(model, _mask(model)):
        silent = model.hidden(BATCH)
    assert torch.equal(model.hidden(BATCH), before)
    with torch.no_grad():
        for key, at in masked_slices(_mask(model)).items():
            weight = model.module(key.layer, key.module).weight
            (weight if key.axis == "rows" else weight.T)[at.long()] = 0
    torch.testing.assert_close(silent, model.hidden(BATCH), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(silent, before, atol=1e-3)


def test_hooks_go_when_the_block_fails(model: Any) -> None:
    deltas = _random_deltas(model)
    with pytest.raises(KeyError), deltas.attached(model), deactivated(model, _mask(model)):
        raise KeyError
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_digest_is_that_of_values_and_places(model: Any) -> None:
    first, again = _random_deltas(model), _random_deltas(model)
    assert digest_of(first.tensors()) == digest_of(again.tensors())
    with torch.no_grad():
        again.values[0][0, 0] += 1e-6
    assert digest_of(first.tensors()) != digest_of(again.tensors())
