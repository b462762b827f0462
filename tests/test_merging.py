"""Patches into a model directory and out again; plain transformers loads what was merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pico
from small_patches import SMALL, patched_state, scaled_by, small_patch
from transformers import AutoConfig, AutoModelForCausalLM

import snt.merging as merging
from snt.anatomy import anatomy_of
from snt.atomic import sha256_of
from snt.deltas import SliceKey
from snt.errors import (
    FormatError,
    MismatchError,
    MissingFileError,
    NegativeResult,
    RequestError,
    RunFailure,
)
from snt.fingerprint import fingerprint_of
from snt.merging import FORMAT, ORIGINALS, apply_patch
from snt.patches import Patch
from snt.tensor_files import read_tensors, write_tensors
from snt.unmerging import revert_patch


def _copy(pico: Path, target: Path, dtype: torch.dtype, shard: str) -> Path:
    model = AutoModelForCausalLM.from_pretrained(pico, dtype=dtype)
    shutil.copytree(pico, target, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(target, max_shard_size=shard)
    return target


def _digests(directory: Path) -> dict[str, str]:
    return {
        str(p.relative_to(directory)): sha256_of(p) for p in directory.rglob("*") if p.is_file()
    }


CROSSING = {
    SliceKey(0, "mlp.up_proj", "rows"): [1, 7],
    SliceKey(0, "mlp.up_proj", "cols"): [0, 30, 31],
    SliceKey(1, "mlp.up_proj", "cols"): [2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_apply_then_revert(pico: Path, tmp_path: Path, dtype: torch.dtype, shard: str) -> None:
    base = _copy(pico, tmp_path / "base", dtype, shard)
    assert (len(list(base.glob("*.safetensors"))) > 1) == (shard == "20KB")
    before, patch = _digests(base), small_patch(base)
    report = apply_patch(patch, base, tmp_path / "merged")
    kept = report.kept
    assert kept.entries == kept.nonzero == kept.changed == 96 and report.outside_changed == 0
    assert (kept.rounding == 0) == (dtype == torch.float32)
    assert report.dtype == report.base_dtype == str(dtype).removeprefix("torch.")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    wanted = patched_state(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), patch)
    for name, tensor in wanted.items():
        assert torch.equal(tensor, merged.state_dict()[name]), name
    assert _digests(base) == before
    restored = revert_patch(tmp_path / "merged", tmp_path / "restored")
    assert restored.entries == 96
    assert _digests(tmp_path / "restored") == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_cross_columns_are_rounded_once(
    pico: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = _copy(pico, tmp_path / "base", dtype, "5GB")
    patch = small_patch(base, CROSSING)
    report = apply_patch(patch, base, tmp_path / "merged")
    assert report.kept.entries == 2 * 32 + 3 * 48 - 6 + 48 == report.kept.changed
    wanted = patched_state(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), patch)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in wanted.items())
    assert revert_patch(tmp_path / "merged", tmp_path / "back").entries == report.kept.entries
    assert _digests(tmp_path / "back") == _digests(base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_another_precision(pico: Path, tmp_path: Path, shard: str, dtype: torch.dtype) -> None:
    base = _copy(pico, tmp_path / "base", torch.float32, shard)
    patch = small_patch(base, {**CROSSING, **SMALL})
    report = apply_patch(patch, base, tmp_path / "merged", dtype=dtype)
    assert (report.base_dtype, report.dtype) == ("float32", str(dtype).removeprefix("torch."))
    assert report.outside_changed == 0 and 0 < report.kept.relative_error < 0.01
    wanted = patched_state(AutoModelForCausalLM.from_pretrained(base), patch)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    for name, tensor in merged.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, wanted[name].to(dtype)), name
    # Taken out again it is the base in that precision.
    revert_patch(tmp_path / "merged", tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto").state_dict()
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in whole.items())
    index = tmp_path / "merged" / "model.safetensors.index.json"
    if index.is_file():
        told = json.loads(index.read_text())["metadata"]["total_size"]
        was = json.loads((base / index.name).read_text())["metadata"]["total_size"]
        assert told * 2 == was


def test_the_precision_that_is_there_changes_no_other_byte(pico: Path, tmp_path: Path) -> None:
    apply_patch(small_patch(pico), pico, tmp_path / "a")
    apply_patch(small_patch(pico), pico, tmp_path / "b", dtype=torch.float32)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")


def test_what_rounding_keeps(pico: Path, tmp_path: Path) -> None:
    base = _copy(pico, tmp_path / "base", torch.bfloat16, "5GB")
    patch = small_patch(base)
    tiny = Patch(patch.anatomy, scaled_by(patch, 1e-9), patch.fingerprint)
    with pytest.raises(NegativeResult, match="none of the patch's 96.*bfloat16.*float32"):
        apply_patch(tiny, base, tmp_path / "out")
    zero = Patch(patch.anatomy, scaled_by(patch, 0.0), patch.fingerprint)
    with pytest.raises(NegativeResult, match="are zero"):
        apply_patch(zero, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Half an ulp of most weights: some entries survive, and the report says how many.
    small = Patch(patch.anatomy, scaled_by(patch, 2e-4), patch.fingerprint)
    kept = apply_patch(small, base, tmp_path / "out").kept
    assert 0 < kept.changed < kept.nonzero == 96 and kept.kept_share == kept.changed / 96
    weights = (
        AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict()
        for path in (tmp_path / "out", base)
    )
    after, before = weights
    moved = torch.cat([(after[name].double() - before[name].double()).flatten() for name in before])
    delta = torch.cat([delta.flatten() for _, delta in small.slices.values()]).double()
    assert int((moved != 0).sum()) == kept.changed
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in before.items()}
    for key, (at, part) in small.slices.items():
        name = f"model.layers.{key.layer}.{key.module}.weight"
        zeros[name].index_add_(0 if key.axis == "rows" else 1, at, part)
    wanted = torch.cat([zeros[name].flatten() for name in before]).double()
    assert kept.relative_error == pytest.approx(float((moved - wanted).norm() / delta.norm()))


def test_float16_that_would_overflow_is_refused(pico: Path, tmp_path: Path) -> None:
    patch = small_patch(pico)
    large = Patch(patch.anatomy, scaled_by(patch, 1e6), patch.fingerprint)
    with pytest.raises(RequestError, match="float16 ends at 65504"):
        apply_patch(large, pico, tmp_path / "out", dtype=torch.float16)
    assert apply_patch(patch, pico, tmp_path / "out", dtype=torch.float16).dtype == "float16"


def test_a_patched_model_takes_no_second_patch(pico: Path, tmp_path: Path) -> None:
    apply_patch(small_patch(pico), pico, tmp_path / "merged")
    with pytest.raises(RequestError, match="holds a patch already.*stack"):
        apply_patch(small_patch(pico), tmp_path / "merged", tmp_path / "out", force=True)


def test_originals_lie_where_no_server_looks_for_weights(pico: Path, tmp_path: Path) -> None:
    apply_patch(small_patch(pico), pico, tmp_path / "merged")
    assert [p.name for p in (tmp_path / "merged").glob("*.safetensors")] == ["model.safetensors"]
    assert (tmp_path / "merged" / ORIGINALS).is_file()


def test_another_model_is_refused(pico: Path, tmp_path: Path) -> None:
    patch = small_patch(pico)
    wide = write_pico(tmp_path / "wide", hidden_size=64)
    with pytest.raises(MismatchError, match="another shape"):
        apply_patch(patch, wide, tmp_path / "out")
    other = write_pico(tmp_path / "other", seed=9)
    with pytest.raises(MismatchError, match="other weights"):
        apply_patch(patch, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert apply_patch(patch, other, tmp_path / "out", force=True).kept.changed == 96


def test_a_directory_in_use_is_left_alone(pico: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RequestError, match="exists already"):
        apply_patch(small_patch(pico), pico, tmp_path / "out")


def test_a_merged_model_that_was_changed_is_not_reverted(pico: Path, tmp_path: Path) -> None:
    apply_patch(small_patch(pico), pico, tmp_path / "merged")
    with (tmp_path / "merged" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(FormatError, match="changed since"):
        revert_patch(tmp_path / "merged", tmp_path / "out")
    with pytest.raises(MissingFileError, match="only what"):
        revert_patch(pico, tmp_path / "out")
    assert not (tmp_path / "out").exists()


_Q = "layers.0.self_attn.q_proj.rows"


@pytest.mark.parametrize(
    "change",
    [
        {f"{_Q}.indices": torch.tensor([0, 32], dtype=torch.int32)},
        {f"{_Q}.indices": torch.tensor([-1, 5], dtype=torch.int32)},
        {f"{_Q}.indices": torch.tensor([0], dtype=torch.int32)},
        {f"{_Q}.indices": None},
        {_Q: torch.zeros(2, 31)},
        {_Q: torch.zeros(2, 32, dtype=torch.float64)},
        {"layers.9.self_attn.q_proj.rows": torch.zeros(1, 32)},
        {"lm_head.weight": torch.zeros(1)},
        {_Q: torch.zeros(2, 32)},
    ],
)
def test_originals_that_lie_restore_nothing(
    pico: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    apply_patch(small_patch(pico), pico, tmp_path / "merged")
    path = tmp_path / "merged" / ORIGINALS
    tensors, metadata = read_tensors(path, FORMAT)
    held = {name: value for name, value in {**tensors, **change}.items() if value is not None}
    write_tensors(path, held, metadata)
    with pytest.raises((FormatError, RunFailure)):
        revert_patch(tmp_path / "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "files", [None, [], {"../pico/model.safetensors": {}}, {"model.safetensors": {"before": "x"}}]
)
def test_originals_that_name_other_files_are_refused(
    pico: Path, tmp_path: Path, files: Any
) -> None:
    apply_patch(small_patch(pico), pico, tmp_path / "merged")
    path = tmp_path / "merged" / ORIGINALS
    tensors, metadata = read_tensors(path, FORMAT)
    write_tensors(path, tensors, {**metadata, "files": files})
    with pytest.raises(FormatError, match="names no files"):
        revert_patch(tmp_path / "merged", tmp_path / "out")


def test_a_full_disk_leaves_nothing(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "copy_model", full)
    with pytest.raises(RunFailure, match="No space left"):
        apply_patch(small_patch(pico), pico, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


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
