"""Files appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snt import atomic
from snt.errors import RequestError, RunFailure
from snt.tensor_files import write_tensors


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "mask.safetensors"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(RunFailure, match="No space left"):
        atomic.write_text(target, "new")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_full_disk_keeps_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "patch"
    target.mkdir()
    (target / "old").touch()
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(RunFailure), atomic.whole_directory(target) as directory:
        (directory / "new").touch()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["patch"]


def test_a_full_disk_is_told_for_tensors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch
    import torch

    def full(*_: object, **__: object) -> None:
        reason = "Error while serializing: I/O error: No space left on device (os error 28)"
        raise safetensors.SafetensorError(reason)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunFailure, match="m.safetensors: No space left on device"):
        write_tensors(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        atomic.whole_directory(tmp_path / "patch") as directory,
    ):
        (directory / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="choose another place"):
        atomic.check_writable(tmp_path / "file" / "mask.safetensors")
    (tmp_path / "mask.safetensors").mkdir()
    with pytest.raises(RequestError, match="is a directory"):
        atomic.check_writable(tmp_path / "mask.safetensors")
    (tmp_path / "patch").mkdir()
    with pytest.raises(RequestError, match="is a directory"):
        atomic.check_writable(tmp_path / "patch")
    atomic.check_writable(tmp_path / "patch", directory=True)
    with pytest.raises(RequestError, match="is a file"):
        atomic.check_writable(tmp_path / "file", directory=True)
    atomic.check_writable(tmp_path / "new" / "mask.safetensors")
    assert list((tmp_path / "new").iterdir()) == []
