"""Patches into a model directory and out again; plain transformers loads what was merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pico
from transformers import AutoConfig, AutoModelForCausalLM

import snt.merging as merging
from snt.anatomy import anatomy_of
from snt.atomic import sha256_of
from snt.deltas import SliceKey
from snt.errors import FormatError, MismatchError, MissingFileError, RequestError, RunFailure
from snt.fingerprint import fingerprint_of
from snt.merging import ORIGINALS, apply_patch, revert_patch
from snt.patches import Patch, load_patch, save_patch

Change = Callable[[dict[str, Any]], None]


def _patch(model_dir: Path) -> Patch:
    anatomy = anatomy_of(AutoConfig.from_pretrained(model_dir))
    draw = torch.Generator().manual_seed(2)
    rows, columns = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    slices = {
        SliceKey(0, "self_attn.q_proj", "rows"): (rows, torch.randn(2, 32, generator=draw)),
        SliceKey(1, "mlp.down_proj", "cols"): (columns, torch.randn(32, 1, generator=draw)),
    }
    return Patch(anatomy, slices, fingerprint_of(model_dir, anatomy), {"model": {"id": "pico"}})


def _copy(pico: Path, target: Path, dtype: torch.dtype, shard: str) -> Path:
    model = AutoModelForCausalLM.from_pretrained(pico, dtype=dtype)
    shutil.copytree(pico, target, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(target, max_shard_size=shard)
    return target


def _digests(directory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(directory)): sha256_of(p) for p in directory.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_apply_then_revert(pico: Path, tmp_path: Path, dtype: torch.dtype, shard: str) -> None:
    base = _copy(pico, tmp_path / "base", dtype, shard)
    assert (len(list(base.glob("*.safetensors"))) > 1) == (shard == "20KB")
    before, patch = _digests(base), _patch(base)
    report = apply_patch(patch, base, tmp_path / "merged")
    assert report.entries == report.changed == 96 and report.outside_changed == 0
    assert (report.rounding == 0) == (dtype == torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    wanted = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    with torch.no_grad():
        for key, (indices, delta) in patch.slices.items():
            weight: Any = wanted.model.layers[key.layer].get_submodule(key.module).weight
            at = indices.long()
            if key.axis == "rows":
                weight[at] = (weight[at].float() + delta).to(dtype)
            else:
                weight[:, at] = (weight[:, at].float() + delta).to(dtype)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name]), name
    assert _digests(base) == before
    restored = revert_patch(tmp_path / "merged", tmp_path / "restored")
    assert restored.entries == 96
    assert _digests(tmp_path / "restored") == before


def test_originals_lie_where_no_server_looks_for_weights(pico: Path, tmp_path: Path) -> None:
    apply_patch(_patch(pico), pico, tmp_path / "merged")
    assert [p.name for p in (tmp_path / "merged").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "merged" / ORIGINALS).is_file()


def test_another_model_is_refused(pico: Path, tmp_path: Path) -> None:
    patch = _patch(pico)
    wide = write_pico(tmp_path / "wide", hidden_size=64)
    with pytest.raises(MismatchError, match="another shape"):
        apply_patch(patch, wide, tmp_path / "out")
    other = write_pico(tmp_path / "other", seed=9)
    with pytest.raises(MismatchError, match="other weights"):
        apply_patch(patch, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert apply_patch(patch, other, tmp_path / "out", force=True).changed == 96


def test_a_directory_in_use_is_left_alone(pico: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RequestError, match="exists already"):
        apply_patch(_patch(pico), pico, tmp_path / "out")


def test_a_merged_model_that_was_changed_is_not_reverted(pico: Path, tmp_path: Path) -> None:
    apply_patch(_patch(pico), pico, tmp_path / "merged")
    with (tmp_path / "merged" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(FormatError, match="changed since"):
        revert_patch(tmp_path / "merged", tmp_path / "out")
    with pytest.raises(MissingFileError, match="only what"):
        revert_patch(pico, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "copy_model", full)
    with pytest.raises(RunFailure, match="No space left"):
        apply_patch(_patch(pico), pico, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_patch_file_is_read_back_the_same(pico: Path, tmp_path: Path) -> None:
    patch = _patch(pico)
    for name in ("a", "b"):
        save_patch(patch, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = load_patch(tmp_path / "a")
    assert again.anatomy == patch.anatomy and again.fingerprint == patch.fingerprint
    assert again.provenance == patch.provenance and again.entries == 96
    for key, (indices, delta) in patch.slices.items():
        assert torch.equal(again.slices[key][0], indices)
        assert torch.equal(again.slices[key][1], delta)


def _set(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.__setitem__(name, value)


_ROWS, _DELTA = "layers.0.self_attn.q_proj.rows", "layers.0.self_attn.q_proj.delta"


@pytest.mark.parametrize(
    "change",
    [
        _set(_ROWS, torch.tensor([0, 32], dtype=torch.int32)),
        _set(_ROWS, torch.tensor([5, 0], dtype=torch.int32)),
        _set(_ROWS, torch.tensor([0, 5])),
        _set(_ROWS, torch.tensor([0], dtype=torch.int32)),
        _set(_DELTA, torch.full((2, 32), float("nan"))),
        _set(_DELTA, torch.zeros(2, 31)),
        _set(_DELTA, torch.zeros(2, 32, dtype=torch.float64)),
        _set("layers.0.self_attn.q_proj.cols", torch.tensor([0], dtype=torch.int32)),
        _set("layers.7.self_attn.q_proj.rows", torch.tensor([0], dtype=torch.int32)),
        _set("layers.0.self_attn.o_proj.delta", torch.zeros(1, 32)),
        _set("lm_head.weight", torch.zeros(1)),
        lambda tensors: tensors.pop(_DELTA),
    ],
)
def test_hostile_patches_are_refused(pico: Path, tmp_path: Path, change: Change) -> None:
    from snt.tensor_files import read_tensors, write_tensors

    save_patch(_patch(pico), tmp_path / "p")
    tensors, metadata = read_tensors(tmp_path / "p", "snt-patch")
    change(tensors)
    write_tensors(tmp_path / "p", tensors, metadata)
    with pytest.raises(FormatError):
        load_patch(tmp_path / "p")


def test_a_fingerprint_is_that_of_the_weights(pico: Path, tmp_path: Path) -> None:
    anatomy = anatomy_of(AutoConfig.from_pretrained(pico))
    half = _copy(pico, tmp_path / "half", torch.bfloat16, "5GB")
    again = _copy(half, tmp_path / "again", torch.float32, "20KB")
    assert fingerprint_of(half, anatomy) == fingerprint_of(again, anatomy)
    other = write_pico(tmp_path / "other", seed=9)
    assert fingerprint_of(pico, anatomy) != fingerprint_of(other, anatomy)
    (again / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    with pytest.raises(FormatError, match="no file beside it"):
        fingerprint_of(again, anatomy)
