"""Masks: set algebra against Python sets, stable bytes, and files that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from snt.anatomy import Anatomy
from snt.atomic import sha256_of
from snt.errors import FormatError, MismatchError, MissingFileError
from snt.masks import NeuronMask, load_mask, save_mask

ANATOMY = Anatomy("llama", 2, d_model=8, d_ff=10, heads=4, kv_heads=2, head_dim=2)
sets = st.dictionaries(
    st.tuples(st.integers(0, 1), st.sampled_from(["ffn", "q", "k", "v"])),
    st.sets(st.integers(0, 3)),
)


def _mask(chosen: dict[tuple[int, str], set[int]], **more: Any) -> NeuronMask:
    neurons = {p: torch.tensor(sorted(s), dtype=torch.int32) for p, s in chosen.items() if s}
    return NeuronMask(ANATOMY, neurons, **more)


def _flat(mask: NeuronMask) -> set[tuple[int, str, int]]:
    return {(layer, k, i) for (layer, k), t in mask.neurons.items() for i in t.tolist()}


@given(sets, sets)
def test_set_algebra(left: Any, right: Any) -> None:
    a, b = _mask(left), _mask(right)
    assert _flat(a.union(b)) == _flat(a) | _flat(b)
    assert _flat(a.intersect(b)) == _flat(a) & _flat(b)
    assert _flat(a.subtract(b)) == _flat(a) - _flat(b)
    assert a.overlap(b) == b.overlap(a)


def test_round_trip_and_stable_bytes(tmp_path: Path) -> None:
    place = (1, "ffn")
    mask = _mask({place: {0, 9}, (0, "k"): {3}}, scores={place: torch.tensor([0.5, 1.5])})
    for name in ("a", "b"):
        save_mask(mask, tmp_path / name)
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    again = load_mask(tmp_path / "a")
    assert _flat(again) == _flat(mask)
    assert torch.equal(again.scores[place], mask.scores[place])
    assert again.parameters == 2 * 3 * 8 + 8
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a", "b"]


def _write(path: Path, tensors: dict[str, Any], counts: dict[str, int] | None = None) -> None:
    metadata = {
        "format": "snt-mask",
        "version": 1,
        "anatomy": ANATOMY.shape(),
        "counts": counts or {"ffn": 2, "q": 0, "k": 0, "v": 0},
    }
    save_file(tensors, path, metadata={"snt": json.dumps(metadata)})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"layers.0.ffn": torch.tensor([1, 10], dtype=torch.int32)}, "indices 1 to 10"),
        ({"layers.0.ffn": torch.tensor([-1, 2], dtype=torch.int32)}, "indices -1"),
        ({"layers.0.ffn": torch.tensor([2, 1], dtype=torch.int32)}, "sorted"),
        ({"layers.0.ffn": torch.tensor([1, 1], dtype=torch.int32)}, "unique"),
        ({"layers.0.ffn": torch.tensor([1, 2])}, "int64"),
        ({"layers.2.ffn": torch.tensor([1, 2], dtype=torch.int32)}, "no such layer"),
        ({"layers.0.o": torch.tensor([1, 2], dtype=torch.int32)}, "no such layer and kind"),
        ({"weights": torch.tensor([1, 2], dtype=torch.int32)}, "no place"),
        ({"layers.0.ffn": torch.tensor([1], dtype=torch.int32)}, "counts"),
        (
            {
                "layers.0.ffn": torch.tensor([1, 2], dtype=torch.int32),
                "layers.0.ffn.score": torch.tensor([1.0, float("nan")]),
            },
            "NaN",
        ),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    _write(tmp_path / "m", tensors)
    with pytest.raises(FormatError, match=words):
        load_mask(tmp_path / "m")


def test_truncated_bombs_and_strangers(tmp_path: Path) -> None:
    save_mask(_mask({(0, "ffn"): set(range(8))}), tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for length in (0, 3, 8, 50, len(whole) - 1):
        (tmp_path / "t").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            load_mask(tmp_path / "t")
    (tmp_path / "bomb").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(FormatError, match="header"):
        load_mask(tmp_path / "bomb")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(FormatError, match="no snt metadata"):
        load_mask(tmp_path / "other")
    with pytest.raises(MissingFileError):
        load_mask(tmp_path / "none")


def test_another_models_mask_does_not_combine() -> None:
    other = NeuronMask(Anatomy("llama", 3, 8, 10, 4, 2, 2), {})
    with pytest.raises(MismatchError, match="different models"):
        _mask({}).union(other)


# The header's length (520), its JSON padded to a multiple of eight, then the tensors.
GOLDEN = (
    b"\x08\x02\x00\x00\x00\x00\x00\x00"
    rb'{"__metadata__":{"snt":"{\"anatomy\":{\"attention_bias\":false,\"d_ff\":10,'
    rb"\"d_model\":8,\"head_dim\":2,\"heads\":4,\"kv_heads\":2,\"layers\":2,"
    rb"\"model_type\":\"llama\"},\"counts\":{\"ffn\":2,\"k\":1,\"q\":0,\"v\":0},"
    rb"\"format\":\"snt-mask\",\"seed\":1,\"sizes\":{\"ffn\":10,\"k\":4,\"q\":8,\"v\":4},"
    rb'\"version\":1}"},"layers.1.k.score":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    rb'"layers.0.ffn":{"dtype":"I32","shape":[2],"data_offsets":[4,12]},'
    rb'"layers.1.k":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}}       '
    b"\x00\x00\x00?"
    b"\x00\x00\x00\x00\x09\x00\x00\x00"
    b"\x03\x00\x00\x00"
)


def test_golden_bytes(tmp_path: Path) -> None:
    place = (1, "k")
    mask = _mask({(0, "ffn"): {0, 9}, place: {3}}, scores={place: torch.tensor([0.5])})
    save_mask(NeuronMask(ANATOMY, mask.neurons, mask.scores, {"seed": 1}), tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == GOLDEN
    (tmp_path / "golden").write_bytes(GOLDEN)
    again = load_mask(tmp_path / "golden")
    assert _flat(again) == {(0, "ffn", 0), (0, "ffn", 9), (1, "k", 3)}
    assert again.provenance == {"seed": 1}
