"""Patches of pico models with random deltas, and their directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from snt.anatomy import anatomy_of
from snt.deltas import SliceKey
from snt.fingerprint import fingerprint_of
from snt.patches import Patch, module_shape, save_patch

SMALL = {
    SliceKey(0, "self_attn.q_proj", "rows"): [0, 5],
    SliceKey(1, "mlp.down_proj", "cols"): [3],
}


def small_patch(
    model_dir: Path, places: dict[SliceKey, list[int]] | None = None, seed: int = 2
) -> Patch:
    """Normal deltas at the given rows and columns of a model."""
    anatomy = anatomy_of(AutoConfig.from_pretrained(model_dir))
    draw = torch.Generator().manual_seed(seed)
    slices: dict[SliceKey, tuple[Tensor, Tensor]] = {}
    for key, at in (SMALL if places is None else places).items():
        shape = module_shape(anatomy, key.module)
        assert shape is not None
        size = (len(at), shape[1]) if key.axis == "rows" else (shape[0], len(at))
        slices[key] = (torch.tensor(at, dtype=torch.int32), torch.randn(size, generator=draw))
    about: dict[str, Any] = {"model": {"id": "someone/pico", "revision": None}}
    return Patch(anatomy, slices, fingerprint_of(model_dir, anatomy), about)


def write_patch(patch: Patch, directory: Path) -> Path:
    """A patch directory without a mask."""
    save_patch(patch, directory / "patch.safetensors")
    return directory


def patched_state(model: Any, patch: Patch) -> dict[str, Tensor]:
    """The model's weights, float32, with the patch added entry by entry."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change: dict[str, Tensor] = {}
    for key, (indices, delta) in patch.slices.items():
        name = f"{patch.anatomy.family.layers}.{key.layer}.{key.module}.weight"
        whole = change.setdefault(name, torch.zeros(state[name].shape))
        whole.index_add_(0 if key.axis == "rows" else 1, indices, delta)
    for name, whole in change.items():
        state[name] = (state[name].float() + whole).to(state[name].dtype)
    return state


def scaled_by(patch: Patch, factor: float) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """A patch's slices times any factor, those that snt refuses included."""
    return {key: (at, delta * factor) for key, (at, delta) in patch.slices.items()}
