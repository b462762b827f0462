"""The choice of a backend and the estimate before it: what fits, what is refused, and with what."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import snt

from snt import machine, opening, plugins
from snt.backend import ModelSize
from snt.backend_choice import check_abilities, choose
from snt.corpora import Corpus
from snt.doctor import LIBRARIES, examine
from snt.errors import RequestError
from snt.machine import Device, container_memory
from snt.model_refs import ALIASES
from snt.model_sizes import ALIAS_SIZES, size_of
from snt.opening import ModelChoice, open_model
from snt.preflight import Work, detection_work, duration, gigabytes, memory_of, seconds_of

GB = 10**9
LLAMA = ALIAS_SIZES["llama3-8b"]
DETECT = Work(("detect",), tokens=1000, longest=100, at_once=800, importance="exact")
TUNE = Work(("tune",), trained=1000, trainable=1_000_000, backward_at_once=1000)


def _device(gigabytes: float) -> Device:
    return Device("cpu", "a test's processor", int(gigabytes * GB), 64 * GB)


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends named as the built-in ones are, with their sizes and abilities."""
    every = ("detect", "score", "generate", "tune", "patch")
    kinds: dict[str, Any] = {
        "full": (every, lambda size, item: size.parameters * item),
        "int8": (every, lambda size, item: size.parameters),
        "int4": (every, lambda size, item: size.parameters // 2),
        "streaming": (("detect", "score"), lambda size, item: 2 * size.parameters // size.layers),
    }
    for name, (abilities, held) in kinds.items():
        fake: Any = SimpleNamespace(
            summary="",
            load=lambda *_: None,
            fast_dtype=lambda: torch.bfloat16,
            abilities=abilities,
            weight_bytes=held,
        )
        monkeypatch.setitem(sys.modules, f"test_{name}", fake)
    points = [EntryPoint(name, f"test_{name}", "snt.backends") for name in kinds]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    monkeypatch.delenv("SNT_PREFLIGHT", raising=False)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("work", "exact", "free", "picked"),
    [
        (DETECT, True, 60, ("full", "float32")),
        (DETECT, True, 24, ("streaming", "float32")),
        (TUNE, False, 60, ("full", "bfloat16")),
        (TUNE, False, 20, ("int8", "bfloat16")),
        (TUNE, False, 14, ("int4", "bfloat16")),
    ],
)
def test_the_first_that_fits(work: Work, exact: bool, free: int, picked: tuple[str, str]) -> None:
    choice = choose("llama3-8b", LLAMA, work, _device(free), exact=exact)
    assert (choice.option.name, choice.option.dtype) == picked
    assert "picked" in choice.why and f"{free}.0 GB are free on a test's processor" in choice.why
    if picked[0] != "full":
        assert "would need" in choice.why


@pytest.mark.usefixtures("four")
def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(work: Work, free: float, exact: bool = False, **more: Any) -> Any:
        return choose("llama3-8b", LLAMA, work, _device(free), exact=exact, **more)

    with pytest.raises(
        RequestError, match="float32 by backend 'full' needs about 3.* GB"
    ) as caught:
        ask(DETECT, 24, exact=True, backend="full")
    said = str(caught.value)
    assert "--backend full --dtype bfloat16 (" in said and "--backend streaming" in said
    assert "24.0 GB are free on a test's processor" in said
    with pytest.raises(RequestError, match="no backend here fits it either: take a smaller"):
        ask(TUNE, 1)
    with pytest.raises(RequestError, match="it fits with --backend full --dtype bfloat16"):
        ask(TUNE, 30, backend="full", dtype="float32")
    with pytest.raises(
        RequestError, match="'int4' needs .* it fits with --backend int4 --dtype bf"
    ):
        ask(TUNE, 16, dtype="float32")
    monkeypatch.setenv("SNT_PREFLIGHT", "off")
    assert ask(TUNE, 1).option.name == "full"
    assert ask(TUNE, 1, backend="int8").option.name == "int8"


@pytest.mark.usefixtures("four")
def test_what_a_backend_cannot_do_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "'streaming' cannot tune, which this needs; --backend full or int4 or int8 can"
    with pytest.raises(RequestError, match=said):
        check_abilities("streaming", TUNE)
    # Before a model is asked for: this one does not exist.
    with pytest.raises(RequestError, match=said):
        open_model(ModelChoice("./nowhere", "streaming"), work=TUNE)
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda group: [EntryPoint("streaming", "test_streaming", "snt.backends")],
    )
    with pytest.raises(RequestError, match="no other installed backend can either"):
        check_abilities("streaming", TUNE)
    with pytest.raises(RequestError, match="no installed backend can tune"):
        choose("llama3-8b", LLAMA, TUNE, _device(60))


def test_memory_grows_with_what_is_asked() -> None:
    weights = LLAMA.parameters * 2

    def total(work: Work) -> int:
        return memory_of(LLAMA, work, weights, 2).total

    assert total(Work()) > weights
    assert total(DETECT) > total(Work())
    assert total(TUNE) > total(Work(at_once=1000))
    reply = Work(replies=1, rows=1, longest=100, new_tokens=28)
    cache = memory_of(LLAMA, reply, weights, 2).cache
    assert cache == 128 * 2 * 32 * 8 * 128 * 2
    parts = str(memory_of(LLAMA, TUNE, weights, 2))
    assert "weights 16.1 GB" in parts and "deltas and their optimizer 16 MB" in parts


def test_sizes_of_aliases_and_of_directories(pico: Path) -> None:
    assert ALIAS_SIZES.keys() == ALIASES.keys()
    published = {
        "smollm2-135m": 134_515_008,
        "llama3-8b": 8_030_261_248,
        "llama2-7b-chat": 6_738_415_616,
        "mistral-7b": 7_241_732_096,
        "vicuna-13b": 13_015_864_320,
    }
    assert {name: ALIAS_SIZES[name].parameters for name in published} == published
    size = size_of(pico)
    assert size == ModelSize(
        parameters=2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 64) + 32 + 2 * 258 * 32,
        in_layers=2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48),
        layers=2,
        stored=4 * size.parameters,
        d_model=32,
        d_ff=48,
        neurons=48 + 32 + 16 + 16,
        cache_entries=2 * 2 * 16,
        vocabulary=258,
    )


def test_time_is_that_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "matmul_rate", lambda *_: 1e12)
    forward = seconds_of(LLAMA, Work(tokens=1000), "cpu", torch.float32)
    assert forward == pytest.approx(1.3 * 2 * LLAMA.in_layers * 1000 / 1e12)
    assert seconds_of(LLAMA, DETECT, "cpu", torch.float32) == pytest.approx(1.7 * forward)
    long, short = (
        detection_work([Corpus("mine", (text,) * number, ())], "exact")
        for text, number in (("x" * 16_000, 1), ("x" * 400, 40))
    )
    assert long.pairs > 10 * short.pairs
    assert seconds_of(LLAMA, long, "cpu", torch.float32) > 1.3 * seconds_of(
        LLAMA, short, "cpu", torch.float32
    )
    assert seconds_of(LLAMA, Work(trained=1000), "cpu", torch.float32) > 3 * forward
    assert seconds_of(LLAMA, Work(), "cpu", torch.float32) == 0
    assert [duration(x) for x in (0.1, 40, 300, 7200)] == ["1 s", "40 s", "5 min", "2.0 h"]
    assert [gigabytes(x) for x in (538_060_800, 16 * 10**6, 4000)] == [
        "538 MB",
        "16 MB",
        "0.004 MB",
    ]


def test_a_rate_is_measured() -> None:
    assert machine.matmul_rate("cpu", torch.float32, 16, 64, 96) > 1e6


def test_a_container_s_limit_minds_files_that_give_way(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 300\nactive_file 200\n")
    assert container_memory(tmp_path) == (600, 1000)
    (tmp_path / "memory.max").write_text("max\n")
    assert container_memory(tmp_path) is None


def test_a_run_says_what_it_takes(pico: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("How?\nWhy?\nWhen?\n")
    done = snt("detect", str(pico), "--corpus", str(prompts), "--against", "none", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "backend: full in float32, picked: it fits" in done.stderr
    assert "estimate: memory" in done.stderr and "and about 1 s" in done.stderr


def test_a_run_that_cannot_fit_loads_nothing(pico: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [Device("cpu", "a small machine", 1000, 1000)]
    monkeypatch.setattr(machine, "devices", lambda: small)
    monkeypatch.setattr(opening, "seconds_of", lambda *_: 1 / 0)
    with pytest.raises(RequestError, match="needs about .* 0.001 MB are free on a small machine"):
        open_model(ModelChoice(str(pico)))


def test_the_doctor_says_which_backend_fits() -> None:
    found = examine()
    json.dumps(found)
    assert found["devices"][-1]["kind"] == "cpu" and found["devices"][-1]["free"] > 0
    assert set(found["libraries"]) == set(LIBRARIES) and found["libraries"]["torch"]
    rows = {row["name"]: row for row in found["models"]}
    assert rows.keys() == ALIASES.keys()
    assert rows["smollm2-135m"]["detect"]["backend"] == "full"
