"""The scores file: read back the same, and nothing in it trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from snt.anatomy import KINDS, Anatomy
from snt.errors import FormatError
from snt.scores import NeuronScores, Scores
from snt.scores_files import ScoresFile, load_scores, save_scores, scores_path
from snt.tensor_files import read_tensors, write_tensors

ANATOMY = Anatomy("llama", 2, 16, 24, 4, 2, 4)


def _file() -> ScoresFile:
    draw = torch.Generator().manual_seed(0)
    places = {
        (layer, kind): NeuronScores.of(torch.rand(3, ANATOMY.size(kind), generator=draw))
        for layer in range(2)
        for kind in KINDS
    }
    return ScoresFile(ANATOMY, Scores(places), {"seed": 1})


def test_it_is_read_back_the_same(tmp_path: Path) -> None:
    file = _file()
    for name in ("a", "b"):
        save_scores(file, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = load_scores(tmp_path / "a")
    assert again.anatomy == ANATOMY and again.provenance == {"seed": 1}
    for place, scores in file.scores.places.items():
        found = again.scores.places[place]
        assert torch.equal(found.minimum, scores.minimum)
        assert torch.equal(found.worst_rank, scores.worst_rank)
        assert torch.equal(found.histogram, scores.histogram)


def test_names_beside_the_mask() -> None:
    assert scores_path(Path("a/m.safetensors")) == Path("a/m.scores.safetensors")
    assert scores_path(Path("m.safetensors"), against=True) == Path("m.against.scores.safetensors")


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    "change",
    [
        _set("layers.0.q.min", torch.full((16,), float("nan"))),
        _set("layers.0.q.min", -torch.ones(16)),
        _set("layers.0.q.min", torch.zeros(15)),
        _set("layers.0.q.min", torch.zeros(16, dtype=torch.float64)),
        _set("layers.0.q.worst_rank", torch.full((16,), 16, dtype=torch.int32)),
        _set("layers.0.q.hist", torch.zeros(16, 40, dtype=torch.int32)),
        _set("layers.0.x.min", torch.zeros(16)),
        _set("layers.9.q.min", torch.zeros(16)),
        _set("weights", torch.zeros(1)),
        lambda tensors: tensors.pop("layers.1.v.hist"),
    ],
)
def test_hostile_files_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    save_scores(_file(), tmp_path / "s")
    tensors, metadata = read_tensors(tmp_path / "s", "snt-scores")
    change(tensors)
    write_tensors(tmp_path / "s", tensors, metadata)
    with pytest.raises(FormatError):
        load_scores(tmp_path / "s")


@pytest.mark.parametrize(
    "shape",
    [
        None,
        {},
        {**ANATOMY.shape(), "layers": 10**12},
        {**ANATOMY.shape(), "heads": 2.5},
        {**ANATOMY.shape(), "kv_heads": 3},
        {**ANATOMY.shape(), "model_type": "nonsense"},
        {**ANATOMY.shape(), "extra": 1},
    ],
)
def test_a_header_that_describes_no_model_is_refused(tmp_path: Path, shape: Any) -> None:
    save_scores(_file(), tmp_path / "s")
    tensors, metadata = read_tensors(tmp_path / "s", "snt-scores")
    write_tensors(tmp_path / "s", tensors, {**metadata, "anatomy": shape})
    with pytest.raises(FormatError, match="metadata|model type"):
        load_scores(tmp_path / "s")
