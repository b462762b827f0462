"""The warning before a tuning and the proof after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.backend import get_backend
from snt.deltas import SliceKey
from snt.errors import NegativeResult, RunFailure
from snt.fingerprint import Fingerprint
from snt.patches import Patch, save_patch
from snt.proving import half_bf16_step, prove, rounding_warning, typical_size

KEY = SliceKey(0, "mlp.up_proj", "rows")


@given(st.floats(1e-6, 100.0, allow_nan=False))
def test_half_a_step_is_where_bfloat16_begins_to_move(size: float) -> None:
    weight = torch.tensor(size).bfloat16().double()
    half = half_bf16_step(float(weight))
    assert (weight + 0.98 * half).float().bfloat16().double() == weight
    assert (weight + 1.02 * half).float().bfloat16().double() != weight


def test_half_a_step_at_the_size_of_weights() -> None:
    assert half_bf16_step(0.02) == pytest.approx(6.1e-5, rel=0.01)
    assert half_bf16_step(-0.02) == half_bf16_step(0.02) and half_bf16_step(0.0) == 0.0


def test_the_warning_gives_the_numbers() -> None:
    said = rounding_warning(1e-6, 40, 0.02)
    assert said is not None
    for part in ("1e-06 x 40 steps", "4e-05", "0.02", "6.1e-05", "--lr 2e-06"):
        assert part in said
    assert rounding_warning(2e-3, 150, 0.02) is None
    assert rounding_warning(2e-6, 40, 0.02) is None


def test_the_typical_size_is_the_median_of_the_masked_weights(pico: Path) -> None:
    model: Any = get_backend("full").load(pico, torch.float32)
    columns = SliceKey(1, "mlp.down_proj", "cols")
    slices = {KEY: torch.tensor([1, 5]), columns: torch.tensor([0])}
    weights = torch.cat(
        [model.weight(0, "mlp.up_proj")[[1, 5]].flatten(), model.weight(1, "mlp.down_proj")[:, 0]]
    )
    assert typical_size(slices, model) == float(weights.abs().median())


def _patch(pico: Path, values: torch.Tensor) -> Patch:
    anatomy = get_backend("full").load(pico, torch.float32).anatomy
    at = torch.arange(len(values), dtype=torch.int32)
    return Patch(anatomy, {KEY: (at, values)}, Fingerprint(anatomy.shape(), "w"))


def test_a_proof_counts_what_changed(pico: Path, tmp_path: Path) -> None:
    values = torch.zeros(2, 32)
    values[0, 3], values[1, 4] = -0.5, 0.25
    patch = _patch(pico, values)
    save_patch(patch, tmp_path / "p.safetensors")
    proof = prove(tmp_path / "p.safetensors", patch, 0)
    assert (proof.masked, proof.changed, proof.max_abs_delta) == (64, 2, 0.5)
    assert proof.mean_abs_delta == pytest.approx(0.75 / 64)
    with pytest.raises(RunFailure, match="7 entries of the base weights changed"):
        prove(tmp_path / "p.safetensors", patch, 7)


def test_what_was_saved_must_be_what_was_trained(pico: Path, tmp_path: Path) -> None:
    save_patch(_patch(pico, torch.ones(2, 32)), tmp_path / "p.safetensors")
    with pytest.raises(RunFailure, match="not what was trained"):
        prove(tmp_path / "p.safetensors", _patch(pico, 2 * torch.ones(2, 32)), 0)


def test_nothing_changed_is_a_negative_result(pico: Path, tmp_path: Path) -> None:
    patch = _patch(pico, torch.zeros(2, 32))
    save_patch(patch, tmp_path / "p.safetensors")
    with pytest.raises(NegativeResult, match="changed none of 64"):
        prove(tmp_path / "p.safetensors", patch, 0)
