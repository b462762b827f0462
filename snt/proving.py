"""Whether a tuning can change anything, asked before it, and whether it did, read back after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snt.backend import LoadedModel
from snt.deltas import SliceKey
from snt.errors import NegativeResult, RunFailure
from snt.patches import Patch, load_patch


@dataclass(frozen=True)
class Proof:
    """What a tuning changed, read back from the saved patch.

    `masked` entries of the masked slices, `changed` of them not zero any more; `outside_changed`
    entries of the base model's weights that differ from before the training.
    """

    masked: int
    changed: int
    max_abs_delta: float
    mean_abs_delta: float
    outside_changed: int


def prove(path: Path, patch: Patch, outside_changed: int) -> Proof:
    """Read a saved patch back and compare it with what was trained.

    Raises RunFailure when the file differs or a base weight changed, NegativeResult when no entry
    changed.
    """
    saved = load_patch(path)
    for key, (indices, delta) in patch.slices.items():
        found = saved.slices.get(key)
        if found is None or not (torch.equal(found[0], indices) and torch.equal(found[1], delta)):
            raise RunFailure(f"{key} of the saved patch is not what was trained; run it again")
    if outside_changed:
        raise RunFailure(
            f"{outside_changed} entries of the base weights changed during the training; the "
            "backend does not keep them frozen"
        )
    deltas = [delta for _, delta in saved.slices.values()]
    masked = sum(delta.numel() for delta in deltas)
    changed = sum(int((delta != 0).sum()) for delta in deltas)
    if not changed:
        raise NegativeResult(
            f"tuning changed none of {masked} masked entries; raise --lr or --epochs"
        )
    total = sum(float(delta.abs().sum()) for delta in deltas)
    largest = max(float(delta.abs().max()) for delta in deltas)
    return Proof(masked, changed, largest, total / masked, outside_changed)


def half_bf16_step(value: float) -> float:
    """Half the distance between neighbouring bfloat16 numbers (8 bits of mantissa) at `value`.

    A smaller change is lost when it is added and rounded. 0.02 -> 6.1e-5.
    """
    return 0.0 if value == 0.0 else math.ldexp(1.0, math.frexp(abs(value))[1] - 9)


def typical_size(slices: Mapping[SliceKey, Tensor], model: LoadedModel) -> float:
    """Median magnitude of the masked weights, over slices weighted by their entries."""
    sizes = []
    for key, indices in slices.items():
        weight = model.weight(key.layer, key.module)
        axis = 0 if key.axis == "rows" else 1
        sizes.append(weight.index_select(axis, indices.long().to(weight.device)).abs().flatten())
    return float(torch.cat(sizes).median())


def rounding_warning(learning_rate: float, steps: int, typical: float) -> str | None:
    """What a merged bfloat16 model would lose, when learning rate × steps cannot show in it.

    AdamW moves an entry by about the learning rate in a step, so their product bounds the way it
    can go; with a learning rate that falls to zero it goes half of that.
    """
    way, half = learning_rate * steps, half_bf16_step(typical)
    if way >= half or learning_rate == 0.0:
        return None
    return (
        f"--lr {learning_rate:g} x {steps} steps moves a weight by at most {way:.2g}; the masked "
        f"weights are about {typical:.2g}, where half a bfloat16 step is {half:.2g}. A model "
        "merged in bfloat16 would equal the base model. The patch keeps float32 deltas; to "
        f"export a merged model, give --lr {half / steps:.1g} or more, or merge in float32"
    )
