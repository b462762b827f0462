"""Patch files: what is written is read back, in the size it should have; what lies is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_patches import SMALL, small_patch

from snt.anatomy import Anatomy
from snt.deltas import SliceKey, masked_slices
from snt.errors import FormatError, MissingFileError
from snt.fingerprint import Fingerprint
from snt.masks import NeuronMask
from snt.patches import Patch, load_directory, load_patch, module_shape, save_patch
from snt.tensor_files import read_tensors, write_tensors

Change = Callable[[dict[str, Any]], None]


def test_a_patch_file_is_read_back_the_same(pico: Path, tmp_path: Path) -> None:
    patch = small_patch(pico)
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


_OTHER = "layers.1.mlp.down_proj"


def _int(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(_ROWS, _int(0, 32)), "outside 0 to 31"),
        (_set(_ROWS, _int(-1, 5)), "outside 0 to 31"),
        (_set(_ROWS, _int(-(2**31), 2**31 - 1)), "outside 0 to 31"),
        (_set(f"{_OTHER}.cols", _int(48)), "outside 0 to 47"),
        (_set(_ROWS, _int(5, 0)), "not sorted"),
        (_set(_ROWS, _int(5, 5)), "not sorted and unique"),
        (_set(_ROWS, torch.tensor([0, 5])), "int64"),
        (_set(_ROWS, torch.tensor([0.0, 5.0])), "float32 of shape"),
        (_set(_ROWS, torch.tensor([[0, 5]], dtype=torch.int32)), "int32 of shape"),
        (_set(_ROWS, torch.tensor(0, dtype=torch.int32)), "int32 of shape"),
        (_set(_ROWS, _int(0)), "float32 \\(1, 32\\)"),
        (_set(_DELTA, torch.full((2, 32), float("nan"))), "NaN"),
        (_set(_DELTA, torch.full((2, 32), float("-inf"))), "infinity"),
        (_set(_DELTA, torch.zeros(2, 31)), "the delta is"),
        (_set(_DELTA, torch.zeros(32, 2)), "the delta is"),
        (_set(_DELTA, torch.zeros(2, 32, dtype=torch.float64)), "float64"),
        (_set(_DELTA, torch.zeros(2, 32, dtype=torch.int32)), "int32"),
        (_set("layers.0.self_attn.q_proj.cols", _int(0)), "cols_delta"),
        (_set("layers.0.self_attn.q_proj.cols_delta", torch.zeros(32, 1)), "cols_delta"),
        (_set("layers.7.self_attn.q_proj.rows", _int(0)), "needs rows or cols"),
        (_set("layers.0.self_attn.o_proj.delta", torch.zeros(1, 32)), "needs rows or cols"),
        (_set("lm_head.weight", torch.zeros(1)), "no place"),
        (_set("layers.00.self_attn.q_proj.rows", _int(0)), "no place"),
        (_set("layers.0..rows", _int(0)), "no place"),
        (_set("layers.0.../x.rows", _int(0)), "no place"),
        (lambda tensors: tensors.pop(_DELTA), "needs rows or cols"),
    ],
)
def test_hostile_patches_are_refused(
    pico: Path, tmp_path: Path, change: Change, words: str
) -> None:
    save_patch(small_patch(pico), tmp_path / "p")
    tensors, metadata = read_tensors(tmp_path / "p", "snt-patch")
    change(tensors)
    write_tensors(tmp_path / "p", tensors, metadata)
    with pytest.raises(FormatError, match=words):
        load_patch(tmp_path / "p")


@pytest.mark.parametrize("layer", [2, 999_999])
@pytest.mark.parametrize("module", ["mlp.up_proj", "lm_head", "self_attn.o_proj", "__class__"])
def test_modules_that_take_no_deltas(pico: Path, tmp_path: Path, layer: int, module: str) -> None:
    save_patch(small_patch(pico), tmp_path / "p")
    tensors, metadata = read_tensors(tmp_path / "p", "snt-patch")
    place = f"layers.{layer if module == 'mlp.up_proj' else 0}.{module}"
    tensors[f"{place}.rows"], tensors[f"{place}.delta"] = _int(0), torch.zeros(1, 32)
    write_tensors(tmp_path / "p", tensors, metadata)
    with pytest.raises(FormatError, match="no such module"):
        load_patch(tmp_path / "p")


def _lie(header: dict[str, Any], kind: str) -> None:
    entry = header[_DELTA]
    match kind:
        case "longer than the file":
            entry["shape"] = [1 << 40, 32]
            entry["data_offsets"] = [0, (1 << 40) * 128]
        case "another shape":
            entry["shape"] = [4, 32]
        case "another type":
            entry["dtype"] = "F64"
        case "overlapping":
            entry["data_offsets"] = header[_ROWS]["data_offsets"]
        case "negative":
            entry["shape"] = [-2, 32]
        case "unknown type":
            entry["dtype"] = "F33"
        case "a model of monsters":
            told = json.loads(header["__metadata__"]["snt"])
            told["anatomy"]["d_ff"] = 1 << 60
            header["__metadata__"]["snt"] = json.dumps(told)
        case "no model":
            told = json.loads(header["__metadata__"]["snt"])
            told["anatomy"] = ["llama"]
            header["__metadata__"]["snt"] = json.dumps(told)
        case "a mask":
            told = json.loads(header["__metadata__"]["snt"])
            told["format"] = "snt-mask"
            header["__metadata__"]["snt"] = json.dumps(told)
        case "version 2":
            told = json.loads(header["__metadata__"]["snt"])
            told["version"] = 2
            header["__metadata__"]["snt"] = json.dumps(told)


@pytest.mark.parametrize(
    "kind",
    [
        "longer than the file",
        "another shape",
        "another type",
        "overlapping",
        "negative",
        "unknown type",
        "a model of monsters",
        "no model",
        "a mask",
        "version 2",
    ],
)
def test_headers_that_lie_are_refused(pico: Path, tmp_path: Path, kind: str) -> None:
    save_patch(small_patch(pico), tmp_path / "p")
    whole = (tmp_path / "p").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    _lie(header, kind)
    text = json.dumps(header).encode()
    (tmp_path / "p").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(FormatError):
        load_patch(tmp_path / "p")


def test_truncated_bombs_and_strangers(pico: Path, tmp_path: Path) -> None:
    save_patch(small_patch(pico), tmp_path / "p")
    whole = (tmp_path / "p").read_bytes()
    for length in (0, 3, 8, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "t").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            load_patch(tmp_path / "t")
    (tmp_path / "bomb").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(FormatError, match="header"):
        load_patch(tmp_path / "bomb")
    bomb = json.dumps({"format": "snt-patch", "version": 1, "x": "y" * (9 << 20)})
    save_file({"x": torch.zeros(1)}, tmp_path / "words", metadata={"snt": bomb})
    with pytest.raises(FormatError, match="bytes of metadata"):
        load_patch(tmp_path / "words")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(FormatError, match="no snt metadata"):
        load_patch(tmp_path / "other")
    with pytest.raises(MissingFileError, match="no patch.safetensors"):
        load_directory(tmp_path)


def test_rows_and_columns_of_one_weight(pico: Path, tmp_path: Path) -> None:
    rows, columns = (SliceKey(0, "mlp.up_proj", axis) for axis in ("rows", "cols"))
    patch = small_patch(pico, {rows: [3], columns: [1, 8], **SMALL})
    save_patch(patch, tmp_path / "p")
    tensors, _ = read_tensors(tmp_path / "p", "snt-patch")
    assert tensors["layers.0.mlp.up_proj.cols_delta"].shape == (48, 2)
    again = load_patch(tmp_path / "p")
    assert again.slices.keys() == patch.slices.keys()
    assert all(torch.equal(again.slices[key][1], patch.slices[key][1]) for key in patch.slices)


def test_a_patch_takes_the_bytes_of_its_deltas(tmp_path: Path) -> None:
    """At most 1.1 × (entries × 4 bytes) and the indices, at sizes of a small real model."""
    anatomy = Anatomy("llama", 30, d_model=576, d_ff=1536, heads=9, kv_heads=3, head_dim=64)
    draw = torch.Generator().manual_seed(0)
    neurons = {}
    for layer in range(30):
        for kind, count in (("ffn", 15), ("q", 6), ("k", 2), ("v", 2)):
            drawn = torch.randperm(anatomy.size(kind), generator=draw)[:count]
            neurons[layer, kind] = drawn.sort().values.to(torch.int32)
    slices = {}
    for key, at in masked_slices(NeuronMask(anatomy, neurons)).items():
        shape = module_shape(anatomy, key.module)
        assert shape is not None
        size = (len(at), shape[1]) if key.axis == "rows" else (shape[0], len(at))
        slices[key] = (at, torch.randn(size, generator=draw))
    about = {"model": {"id": "someone/small"}, "retain": ["harmless/tune", "lookalike/tune"]}
    patch = Patch(anatomy, slices, Fingerprint(anatomy.shape(), "0" * 64), about)
    save_patch(patch, tmp_path / "p")
    indices = 4 * sum(len(at) for at, _ in slices.values())
    assert patch.entries == 30 * (15 * 3 + 10) * 576
    assert (tmp_path / "p").stat().st_size <= 1.1 * patch.entries * 4 + indices


# The header's length (736), its JSON padded to a multiple of eight, then the tensors.
GOLDEN = (
    b"\xe0\x02\x00\x00\x00\x00\x00\x00"
    rb'{"__metadata__":{"snt":"{\"anatomy\":{\"attention_bias\":false,\"d_ff\":3,'
    rb"\"d_model\":2,\"head_dim\":2,\"heads\":1,\"kv_heads\":1,\"layers\":1,"
    rb"\"model_type\":\"llama\"},\"fingerprint\":\"ab\",\"format\":\"snt-patch\","
    rb'\"seed\":1,\"version\":1}"},'
    rb'"layers.0.mlp.down_proj.delta":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    rb'"layers.0.mlp.up_proj.cols_delta":{"dtype":"F32","shape":[3,1],"data_offsets":[8,20]},'
    rb'"layers.0.mlp.up_proj.delta":{"dtype":"F32","shape":[1,2],"data_offsets":[20,28]},'
    rb'"layers.0.mlp.down_proj.cols":{"dtype":"I32","shape":[1],"data_offsets":[28,32]},'
    rb'"layers.0.mlp.up_proj.cols":{"dtype":"I32","shape":[1],"data_offsets":[32,36]},'
    rb'"layers.0.mlp.up_proj.rows":{"dtype":"I32","shape":[1],"data_offsets":[36,40]}}  '
    + struct.pack("<7f3i", 0.25, 0, 1, 2, 0, 0.5, -1, 1, 1, 1)
)


def test_golden_bytes(tmp_path: Path) -> None:
    anatomy = Anatomy("llama", 1, d_model=2, d_ff=3, heads=1, kv_heads=1, head_dim=2)
    slices = {
        SliceKey(0, "mlp.up_proj", "rows"): (_int(1), torch.tensor([[0.5, -1.0]])),
        SliceKey(0, "mlp.up_proj", "cols"): (_int(1), torch.tensor([[1.0], [2.0], [0.0]])),
        SliceKey(0, "mlp.down_proj", "cols"): (_int(1), torch.tensor([[0.25], [0.0]])),
    }
    save_patch(
        Patch(anatomy, slices, Fingerprint(anatomy.shape(), "ab"), {"seed": 1}), tmp_path / "p"
    )
    assert (tmp_path / "p").read_bytes() == GOLDEN
    (tmp_path / "golden").write_bytes(GOLDEN)
    again = load_patch(tmp_path / "golden")
    assert again.provenance == {"seed": 1} and again.slices.keys() == slices.keys()
    assert all(torch.equal(again.slices[key][1], delta) for key, (_, delta) in slices.items())
