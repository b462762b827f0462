"""Adapters that peft loads: outputs of the patched model and, merged, its weights, all to the bit.

The patched model is that of `snt eval`, deltas beside the frozen weights. One whose weights were
changed sums the same products in another order.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILIES, family_model
from peft import PeftModel
from safetensors.torch import load_file
from small_patches import patched_state, small_patch, write_patch

from snt.anatomy import KINDS, Anatomy, anatomy_of
from snt.deltas import Deltas, SliceKey, masked_slices
from snt.errors import RequestError
from snt.fingerprint import Fingerprint
from snt.masks import NeuronMask
from snt.patches import Patch, module_shape
from snt.patching import patch_export
from snt.peft_export import factors, uniform_rank

TOKENS = torch.arange(1, 25).reshape(2, 12)


def _patch_of(anatomy: Anatomy, extra: dict[SliceKey, list[int]] | None = None) -> Patch:
    """Deltas of neurons of every kind that deltas can join, of unequal number by layer."""
    kinds = [kind for kind in KINDS if kind != "ffn" or not anatomy.family.experts]
    neurons = {
        (layer, kind): torch.arange(layer, 2 + 2 * layer, dtype=torch.int32)
        for layer in range(anatomy.layers)
        for kind in kinds
    }
    places = masked_slices(NeuronMask(anatomy, neurons))
    for key, at in (extra or {}).items():
        places[key] = torch.tensor(at, dtype=torch.int32)
    draw = torch.Generator().manual_seed(1)
    slices = {}
    for key, indices in places.items():
        shape = module_shape(anatomy, key.module)
        assert shape is not None
        size = (len(indices), shape[1]) if key.axis == "rows" else (shape[0], len(indices))
        slices[key] = (indices, 0.3 * torch.randn(size, generator=draw))
    about: dict[str, Any] = {"model": {"id": "someone/tiny", "revision": "abc"}}
    return Patch(anatomy, slices, Fingerprint(anatomy.shape(), "0" * 64), about)


@dataclass
class _Held:
    """As much of a loaded model as deltas need."""

    model: Any
    anatomy: Anatomy

    def module(self, layer: int, name: str) -> Any:
        return self.model.get_submodule(f"{self.anatomy.family.layers}.{layer}.{name}")


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS, use_cache=False).logits
    return found


def _in_double(model: Any) -> Any:
    """A copy in float64, where one order of summation is as good as another."""
    copied = copy.deepcopy(model).double()
    plain = copied.get_base_model() if isinstance(copied, PeftModel) else copied
    # Experts' fused products have no float64.
    plain.set_experts_implementation("eager")
    return copied


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_gives_the_patched_model(tmp_path: Path, family: str, uniform: bool) -> None:
    base = family_model(family)
    patch = _patch_of(anatomy_of(base.config))
    write_patch(patch, tmp_path / "patch")
    made = patch_export(tmp_path / "patch", tmp_path / "adapter", uniform_rank=uniform)
    plain = _logits(base)
    wanted = patched_state(base, patch)
    changed = family_model(family)
    changed.load_state_dict(wanted)
    with_weights = _logits(changed)
    held: Any = _Held(base, patch.anatomy)
    with Deltas(patch.slices).attached(held):
        with_deltas = _logits(base)
    doubled: Any = _Held(_in_double(base), patch.anatomy)
    with Deltas(patch.slices).attached(doubled):
        exact = _logits(doubled.model)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    found = _logits(loaded)
    adapted = _logits(_in_double(loaded))
    assert float((adapted - exact).abs().max()) <= 1e-14 * float(exact.abs().max())
    # In float32 the order of summation shows: not at all on some processors, 1.7e-6 on others.
    for same in (with_deltas, with_weights):
        assert float((found - same).abs().max()) <= 3e-6 * float(same.abs().max())
    assert float((found - plain).abs().max()) > 1e-3
    merged = loaded.merge_and_unload().state_dict()
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in wanted.items())
    assert len(set(made.ranks.values())) == 1 if uniform else len(set(made.ranks.values())) > 1


def test_bfloat16_weights_merge_to_the_bit(tmp_path: Path) -> None:
    base = family_model("llama").bfloat16()
    patch = _patch_of(anatomy_of(base.config))
    write_patch(patch, tmp_path / "patch")
    patch_export(tmp_path / "patch", tmp_path / "adapter")
    wanted = patched_state(base, patch)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in wanted.items())


def test_rows_and_columns_of_one_weight(tmp_path: Path) -> None:
    base = family_model("llama")
    extra = {SliceKey(0, "mlp.up_proj", "cols"): [0, 7], SliceKey(1, "mlp.up_proj", "rows"): [9]}
    patch = _patch_of(anatomy_of(base.config), extra)
    write_patch(patch, tmp_path / "patch")
    made = patch_export(tmp_path / "patch", tmp_path / "adapter")
    assert made.ranks["model.layers.0.mlp.up_proj"] == 4
    wanted = patched_state(base, patch)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in wanted.items())


def test_what_is_in_the_directory(pico: Path, tmp_path: Path) -> None:
    write_patch(small_patch(pico), tmp_path / "patch")
    (tmp_path / "patch" / "README.md").write_text("---\nbase_model: x\n---\n# Card\n\nMeasured.\n")
    for name in ("a", "b"):
        made = patch_export(tmp_path / "patch", tmp_path / name)
    files = [p.name for p in sorted((tmp_path / "a").iterdir())]
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    attention, feed = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert config["base_model_name_or_path"] == "someone/pico"
    assert config["r"] == config["lora_alpha"] == made.rank == 2
    assert config["rank_pattern"] == config["alpha_pattern"] == {feed: 1}
    assert config["target_modules"] == [attention, feed]
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    one_hot = tensors[f"base_model.model.{attention}.lora_B.weight"]
    assert one_hot.shape == (32, 2) and one_hot.nonzero().tolist() == [[0, 0], [5, 1]]
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\nbase_model: someone/pico\nlibrary_name: peft\n")
    assert "# Card\n\nMeasured." in card and "base_model: x" not in card
    everything = b"".join((tmp_path / "a" / name).read_bytes() for name in files)
    assert str(tmp_path).encode() not in everything


def test_a_uniform_adapter_has_every_layer(pico: Path, tmp_path: Path) -> None:
    write_patch(small_patch(pico), tmp_path / "patch")
    made = patch_export(tmp_path / "patch", tmp_path / "adapter", uniform_rank=True)
    modules = ("self_attn.q_proj", "mlp.down_proj")
    places = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in modules]
    assert made.ranks == dict.fromkeys(places, 8)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 8
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        assert not tensors[f"base_model.model.{name}.lora_A.weight"].any()
        assert not tensors[f"base_model.model.{name}.lora_B.weight"].any()


def test_the_name_of_the_base_model(pico: Path, tmp_path: Path) -> None:
    nameless = small_patch(pico)
    nameless = Patch(nameless.anatomy, nameless.slices, nameless.fingerprint)
    write_patch(nameless, tmp_path / "patch")
    with pytest.raises(RequestError, match="--base"):
        patch_export(tmp_path / "patch", tmp_path / "out")
    for path in ("/home/me/model", "./pico", "../pico", "a/b/c", "~/x", "C:\\x"):
        with pytest.raises(RequestError, match="no model id"):
            patch_export(tmp_path / "patch", tmp_path / "out", base=path)
    assert not (tmp_path / "out").exists()
    assert patch_export(tmp_path / "patch", tmp_path / "out", base="me/mine").base == "me/mine"
    with pytest.raises(RequestError, match="unknown format"):
        patch_export(tmp_path / "patch", tmp_path / "out2", format="gguf")


def test_ranks_that_servers_allow(tmp_path: Path) -> None:
    for needed, served in ((1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)):
        assert uniform_rank({"m": needed, "n": 1}) == served
    anatomy = Anatomy("llama", 1, d_model=4, d_ff=600, heads=1, kv_heads=1, head_dim=4)
    key, many = SliceKey(0, "mlp.up_proj", "rows"), torch.arange(513, dtype=torch.int32)
    few = SliceKey(0, "mlp.gate_proj", "rows")
    patch = Patch(
        anatomy,
        {key: (many, torch.ones(513, 4)), few: (many[:2].clone(), torch.ones(2, 4))},
        Fingerprint(anatomy.shape(), "0" * 64),
        {"model": {"id": "someone/wide"}},
    )
    write_patch(patch, tmp_path / "patch")
    words = "1 of 2 modules need a rank above 512.*layers.0.mlp.up_proj needs 513"
    with pytest.raises(RequestError, match=words):
        patch_export(tmp_path / "patch", tmp_path / "out", uniform_rank=True)
    made = patch_export(tmp_path / "patch", tmp_path / "out")
    assert made.warning is not None and "513" in made.warning and made.rank == 513


def test_factors_multiply_to_the_change() -> None:
    rows = ("rows", torch.tensor([4, 1], dtype=torch.int32), torch.tensor([[1.0, 2], [3, 4]]))
    columns = ("cols", torch.tensor([1], dtype=torch.int32), torch.arange(5.0)[:, None])
    a, b = factors((5, 2), [rows, columns], 8)
    assert a.shape == (8, 2) and b.shape == (5, 8)
    wanted = torch.zeros(5, 2)
    wanted[[4, 1]] += rows[2]
    wanted[:, 1] += torch.arange(5.0)
    assert torch.equal(b @ a, wanted)
