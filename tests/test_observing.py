"""How layers are observed: the model left as it was, few logits at once, nothing missed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from family_models import FAMILIES, MIXTURES, family_model
from snt_backends import observing
from test_families import batch_of, full
from torch.utils._python_dispatch import TorchDispatchMode

from snt.errors import RunFailure
from snt.scoring import detect_scores

BATCH = batch_of(((9, False), (6, True), (1, False)))


class _Largest(TorchDispatchMode):
    """The most elements that any float tensor had."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.found = max(self.found, tensor.numel())
        return output


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_model_is_left_as_it_was(model_type: str) -> None:
    held = full(family_model(model_type))
    config = held.model.config
    implementations = config._attn_implementation, config._experts_implementation
    before = held.hidden(BATCH)

    def fail(*_: Any) -> None:
        raise KeyError

    held.observe([BATCH], lambda *_: None)
    with pytest.raises(KeyError):
        held.observe([BATCH], fail)
    assert implementations == (config._attn_implementation, config._experts_implementation)
    assert torch.equal(held.hidden(BATCH), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in held.model.modules())


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in MIXTURES])
def test_what_the_up_projection_gives(model_type: str) -> None:
    held = full(family_model(model_type))
    entered: list[Any] = []
    for layer in range(held.anatomy.layers):
        mlp = held.module(layer, "mlp")
        mlp.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))

    def visit(layer: int, _batch: Any, seen: Any, _model: Any) -> None:
        part = held.anatomy.slices("ffn")[-2]
        module = held.module(layer, part.module)
        rows = part.places(torch.arange(held.anatomy.size("ffn")))
        wanted = entered[layer] @ module.weight[rows].mT
        wanted = wanted if module.bias is None else wanted + module.bias[rows]
        torch.testing.assert_close(seen.up, wanted)

    held.observe([BATCH], visit)
    assert len(entered) == held.anatomy.layers


@pytest.mark.parametrize("model_type", FAMILIES)
def test_half_precision(model_type: str) -> None:
    model = family_model(model_type)
    single = detect_scores(full(model), [BATCH]).scores
    half = detect_scores(full(model.bfloat16()), [BATCH]).scores
    for place, scores in single.places.items():
        found, wanted = half.places[place].minimum, scores.minimum
        assert float((found - wanted).norm()) <= 0.1 * float(wanted.norm()) + 1e-3, place


@pytest.mark.parametrize("model_type", ["gemma2", "mistral"])
def test_rows_of_attention_in_blocks(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = full(family_model(model_type))
    at_once = detect_scores(held, [BATCH]).scores
    monkeypatch.setattr(observing, "_LOGITS", 1)
    by_row = detect_scores(held, [BATCH]).scores
    for place, scores in at_once.places.items():
        found = by_row.places[place].minimum
        torch.testing.assert_close(found, scores.minimum, rtol=1e-4, atol=1e-5)


def test_logits_of_all_rows_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = full(family_model("gemma2", num_hidden_layers=1, layer_types=["sliding_attention"]))
    long = batch_of(((200, False),), width=200)
    monkeypatch.setattr(observing, "_LOGITS", 10_000)
    with _Largest() as largest:
        held.observe([long], lambda *_: None)
    assert largest.found < 4 * 200 * 200 / 4


@pytest.mark.parametrize("model_type", ["llama", *MIXTURES])
def test_a_layer_that_is_not_seen_is_an_error(model_type: str) -> None:
    held = full(family_model(model_type))
    held.model.set_attn_implementation = lambda _name: None
    with pytest.raises(RunFailure, match="showed no query, key, value, attended"):
        held.observe([BATCH], lambda *_: None)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_nothing_holds_the_model_afterwards(model_type: str) -> None:
    model = full(family_model(model_type))
    detect_scores(model, [BATCH])
    held = weakref.ref(model.model)
    del model
    gc.collect()
    assert held() is None
