"""Fixtures that give a test caches of its own and a stand-in for the Hub; a pytest plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_hub import PATIENCE, Hub, serving, write_model

from snt import embedded, model_refs


@pytest.fixture
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory (returned), empty caches, short patience and no Hub."""
    from huggingface_hub import close_session, constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SNT_MODEL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("SNT_CACHE", str(tmp_path / "snt-cache"))
    # huggingface_hub read its settings when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(model_refs, "EMBEDDED_SECONDS", PATIENCE)
    monkeypatch.setattr(model_refs, "HUB_SECONDS", PATIENCE)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    # The session that all share has read the proxy settings of an earlier test.
    close_session()
    return work


@pytest.fixture
def hub_server(own_caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A working Hub that HF_ENDPOINT points to."""
    assert own_caches.is_dir()
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def wheel_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The wheel's place taken by a tiny model; the list gets `offline` of every call."""
    calls: list[bool] = []

    def obtain(*, offline: bool, on_progress: embedded.Say) -> Path:
        on_progress("the wheel's stand-in")
        calls.append(offline)
        return write_model(embedded.model_directory())

    monkeypatch.setattr(embedded, "obtain", obtain)
    return calls
