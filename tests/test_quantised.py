"""Quantised weights against a full-precision model that holds what their codes stand for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, write_pico
from family_models import family_model
from snt_backends import full, quantised
from snt_backends.quantised import QuantisedBackend
from snt_backends.quantised_model import dequantised, quantised_modules, stored
from test_deltas import _mask, _random_deltas

from snt.ablation import deactivated
from snt.backend import Batch
from snt.deltas import masked_slices
from snt.errors import RequestError, UnavailableError
from snt.scoring import common_beginning, detect_scores

BACKENDS = (quantised.int8, quantised.int4)
FAMILIES = ("llama", "phi3", "gpt_neox", "gemma2", "olmo2")
REAL = torch.ones(3, 12, dtype=torch.bool)
REAL[1, 9:] = False
BATCH = Batch(torch.arange(1, 37).reshape(3, 12), REAL)
each = pytest.mark.parametrize("backend", BACKENDS, ids=[one.name for one in BACKENDS])


def meant(held: Any, directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The full-precision model whose weights are those that the codes of `held` stand for."""
    plain = full.load(directory, dtype)
    for name, module in quantised_modules(held.model).items():
        plain.model.get_submodule(name).weight.data.copy_(dequantised(module))
    return plain


@pytest.fixture(params=BACKENDS, ids=[one.name for one in BACKENDS])
def pair(request: pytest.FixtureRequest, pico: Path) -> tuple[Any, Any]:
    held = request.param.load(pico, torch.float32)
    return held, meant(held, pico)


def test_what_the_codes_stand_for(pico: Path) -> None:
    original = full.load(pico, torch.float32)
    wide, narrow = (backend.load(pico, torch.float32) for backend in BACKENDS)
    for layer in range(2):
        for module in original.anatomy.weight_shapes():
            weight = original.weight(layer, module)
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            # Half a step, and the rounding to float16 that comes before it.
            assert bool(((wide.weight(layer, module) - weight).abs() <= 0.57 * step).all())
            values = narrow.module(layer, module).weight.quant_state.code
            # Blocks of 64 entries run on over the ends of rows.
            blocks = weight.view(-1, 64)
            largest = blocks.abs().amax(dim=1, keepdim=True)
            near = ((blocks / largest).unsqueeze(-1) - values).abs().argmin(dim=-1)
            wanted = (values[near] * largest).view_as(weight)
            torch.testing.assert_close(narrow.weight(layer, module), wanted)


@each
def test_rows_of_whole_blocks_and_others(backend: QuantisedBackend, tmp_path: Path) -> None:
    original = full.load(
        write_pico(tmp_path / "pico", hidden_size=64, intermediate_size=96), torch.float32
    )
    held = backend.load(tmp_path / "pico", torch.float32)
    for module in original.anatomy.weight_shapes():
        weight = original.weight(0, module)
        error = float((held.weight(0, module) - weight).norm() / weight.norm())
        assert error < (0.01 if backend is quantised.int8 else 0.1), module


def test_what_is_told_of_a_model(pair: tuple[Any, Any]) -> None:
    held, plain = pair
    assert held.parameters == plain.parameters
    assert held.dtype is torch.float32
    for module, shape in held.anatomy.weight_shapes().items():
        assert held.weight_shape(1, module) == shape == tuple(held.weight(1, module).shape)
    entries = {name: size for name, (size, _) in held.weight_digests().items()}
    for name, (size, _) in plain.weight_digests().items():
        assert entries[name] == size
    assert not any(parameter.requires_grad for parameter in held.model.parameters())


def test_products_are_of_the_dequantised_weight(pair: tuple[Any, Any]) -> None:
    held, plain = pair
    wanted = plain.hidden(BATCH)
    for training in (False, True):
        held.model.train(training)
        torch.testing.assert_close(held.hidden(BATCH), wanted, rtol=1e-5, atol=1e-6)
    held.model.eval()
    alone = held.hidden(Batch(BATCH.input_ids[2:], BATCH.real[2:]))
    torch.testing.assert_close(alone, wanted[2:], rtol=1e-5, atol=1e-6)
    left = Batch(BATCH.input_ids[:, :4], BATCH.real[:, :4])
    assert torch.equal(held.generate(left, 6, [257]), plain.generate(left, 6, [257]))


@each
@pytest.mark.parametrize("model_type", FAMILIES)
def test_importances_on_the_quantised_forward(
    backend: QuantisedBackend, model_type: str, tmp_path: Path
) -> None:
    family_model(model_type).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    held = backend.load(tmp_path / "model", torch.float32)
    plain = meant(held, tmp_path / "model")
    batches = [BATCH, Batch(BATCH.input_ids[:2], BATCH.real[:2])]
    found, wanted = (detect_scores(one, batches).scores for one in (held, plain))
    for place, scores in wanted.places.items():
        largest = float(scores.minimum.max())
        torch.testing.assert_close(
            found.places[place].minimum, scores.minimum, rtol=1e-4, atol=1e-5 * largest
        )


def test_a_common_beginning_is_seen_once(pair: tuple[Any, Any]) -> None:
    held, plain = pair
    opening = torch.arange(60, 70)
    ids = torch.cat([opening.expand(3, -1), BATCH.input_ids], dim=1)
    real = torch.cat([REAL[:, :1].expand(3, 10), REAL], dim=1)
    batches = [Batch(ids, real)]
    beginning = common_beginning(batches)
    assert beginning is not None
    found = detect_scores(held, batches, beginning=beginning).scores
    wanted = detect_scores(plain, batches).scores
    for place, scores in wanted.places.items():
        torch.testing.assert_close(
            found.places[place].minimum, scores.minimum, rtol=1e-3, atol=1e-5
        )


def test_deltas_beside_quantised_weights(pair: tuple[Any, Any]) -> None:
    held, plain = pair
    before, digests = held.hidden(BATCH), held.weight_digests()
    gradients = []
    for model in pair:
        deltas = _random_deltas(model)
        with model.training(), deltas.attached(model):
            hidden = model.hidden(BATCH)
            model.logits(hidden).square().mean().backward()
        gradients.append([value.grad for value in deltas.values])
        assert not torch.allclose(hidden, before, atol=1e-3)
        assert all(parameter.grad is None for parameter in model.model.parameters())
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert torch.equal(held.hidden(BATCH), before)
    assert held.weight_digests() == digests
    deltas = _random_deltas(held)
    with deltas.attached(held), torch.no_grad():
        attached = held.hidden(BATCH)
    for key, (at, delta) in deltas.tensors().items():
        weight = plain.module(key.layer, key.module).weight.data
        (weight if key.axis == "rows" else weight.T)[at.long()] += (
            delta if key.axis == "rows" else delta.T
        )
    torch.testing.assert_close(attached, plain.hidden(BATCH), rtol=1e-4, atol=1e-5)


def test_no_float_copy_is_kept_for_the_backward_pass(pair: tuple[Any, Any]) -> None:
    held, plain = pair
    shapes = set(held.anatomy.weight_shapes().values())
    saved: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    deltas = _random_deltas(held)
    with deltas.attached(held), torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        held.hidden(BATCH)
    assert saved and not shapes & {shape for one in saved for shape in (one, one[::-1])}
    saved.clear()
    deltas = _random_deltas(plain)
    with deltas.attached(plain), torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        plain.hidden(BATCH)
    assert shapes & {shape for one in saved for shape in (one, one[::-1])}


def test_deactivation_equals_zero_weights(pair: tuple[Any, Any]) -> None:
    held, plain = pair
    before = held.hidden(BATCH)
    with deactivated(held, _mask(held)):
        silent = held.hidden(BATCH)
    assert torch.equal(held.hidden(BATCH), before)
    for key, at in masked_slices(_mask(held)).items():
        weight = plain.module(key.layer, key.module).weight.data
        (weight if key.axis == "rows" else weight.T)[at.long()] = 0
    torch.testing.assert_close(silent, plain.hidden(BATCH), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(silent, before, atol=1e-3)


def test_digests_tell_codes_from_scales(pair: tuple[Any, Any]) -> None:
    held, _ = pair
    before = held.weight_digests()
    parts = stored(held.module(1, "mlp.up_proj"))
    for part, tensor in parts.items():
        changed = tensor.view(-1)[:1].clone()
        tensor.view(-1)[0] += 1
        now = held.weight_digests()
        name = f"model.layers.1.mlp.up_proj.{part}"
        assert [key for key in now if now[key] != before[key]] == [name]
        tensor.view(-1)[:1] = changed
    assert held.weight_digests() == before


@each
def test_half_precision(backend: QuantisedBackend, pico: Path) -> None:
    held = backend.load(pico, torch.bfloat16)
    assert held.dtype is torch.bfloat16
    assert held.weight(0, "mlp.up_proj").dtype is torch.float32
    plain = meant(held, pico)
    wanted = plain.hidden(BATCH)
    assert float((held.hidden(BATCH).float() - wanted).norm() / wanted.norm()) < 0.02
    gradients = []
    for model in (held, plain):
        deltas = _random_deltas(model)
        with model.training(), deltas.attached(model):
            model.logits(model.hidden(BATCH)).square().mean().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in deltas.values]))
    found, wanted = gradients
    assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_codes_times_inputs_in_half_precision(pico: Path) -> None:
    held = quantised.int8.load(pico, torch.bfloat16)
    module = held.module(0, "mlp.up_proj")
    draw = torch.Generator().manual_seed(4)
    inputs = torch.randn(7, 32, generator=draw).bfloat16()
    wanted = inputs.float() @ held.weight(0, "mlp.up_proj").mT
    rounding = 2**-8 * float(wanted.abs().max())
    torch.testing.assert_close(module(inputs).float(), wanted, rtol=0, atol=rounding)
    module.bias = torch.nn.Parameter(torch.randn(48, generator=draw).bfloat16(), False)
    biased = wanted + module.bias.float()
    torch.testing.assert_close(module(inputs).float(), biased, rtol=0, atol=2 * rounding)


@each
def test_without_bitsandbytes(
    backend: QuantisedBackend, pico: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda _name: None)
    with pytest.raises(UnavailableError, match="pip install 'bitsandbytes"):
        backend.load(pico)


@each
def test_models_that_are_not_served(backend: QuantisedBackend, pico: Path, tmp_path: Path) -> None:
    family_model("mixtral").save_pretrained(tmp_path / "mixture")
    with pytest.raises(RequestError, match="mixtral"):
        backend.load(tmp_path / "mixture")
    config = json.loads((pico / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(RequestError, match="quantised already"):
        backend.load(tmp_path / "packed")


def test_the_linear_layers_take_half_of_bfloat16(tmp_path: Path) -> None:
    directory = write_pico(tmp_path / "pico", hidden_size=64, intermediate_size=256)
    for backend, share in zip(BACKENDS, (0.55, 0.3), strict=True):
        modules = quantised_modules(backend.load(directory).model).values()
        held = sum(part.nbytes for one in modules for part in stored(one).values())
        entries = sum(one.in_features * one.out_features for one in modules)
        assert held <= share * 2 * entries
        assert {field.name for field in dataclasses.fields(backend)} == {"name", "summary", "bits"}
