"""A detection that was stopped ends with the same bytes as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt

from snt import corpora, unfinished
from snt.anatomy import KINDS
from snt.backend import Batch, LoadedModel
from snt.corpus_scoring import Shard, score_corpus
from snt.detection import detect
from snt.errors import FormatError, MismatchError, RequestError
from snt.opening import ModelChoice, open_model
from snt.progress import Silence
from snt.resuming import unfinished_directory
from snt.scores_files import load_scores, save_scores
from snt.scores_merging import NamedScores, merged
from snt.scoring import _Collector, detect_scores
from snt.tally import Tally
from snt.tensor_files import read_tensors, write_tensors
from snt.unfinished import plan_digest

NAMES = ("m.safetensors", "m.scores.safetensors", "m.against.scores.safetensors")


class Stop(BaseException):
    """Stands for Ctrl-C, or for anything else."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of 40 and 20 prompts of many lengths: five batches and three."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "bad.txt").write_text(
        "".join(f"Do harm {'x' * (7 * n % 31)}{n}\n" for n in range(40))
    )
    (folder / "good.txt").write_text("".join(f"Make tea {'y' * (n % 9)}{n}\n" for n in range(20)))
    return folder


@pytest.fixture(scope="module")
def whole(place: Path, pico: Path) -> dict[str, bytes]:
    """The files of a detection that nothing stopped."""
    _detect(place, pico, place / "whole")
    return _bytes(place / "whole")


def _detect(place: Path, pico: Path, into: Path, **more: Any) -> None:
    into.mkdir(exist_ok=True)
    given = {"corpus": f"{place}/bad.txt", "against": f"{place}/good.txt", "select_by": "budget=5%"}
    detect(str(pico), output=into / NAMES[0], **{**given, **more})


def _bytes(folder: Path) -> dict[str, bytes]:
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    return {name: (folder / name).read_bytes() for name in NAMES}


def _stop_at(patched: pytest.MonkeyPatch, call: int) -> None:
    """Raise in the visitor's `call`th call: two layers make a batch, and what all begin with."""
    inner, calls = _Collector.__call__, iter(range(call + 1))

    def stopping(self: Any, *words: Any) -> Any:
        if next(calls, None) == call:
            raise Stop
        return inner(self, *words)

    patched.setattr(_Collector, "__call__", stopping)


@pytest.mark.parametrize("call", [4, 5, 7, 11, 12, 13, 17])
def test_stopped_anywhere_it_ends_the_same(
    place: Path, pico: Path, whole: dict[str, bytes], tmp_path: Path, call: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        _stop_at(patched, call)
        with pytest.raises(Stop):
            _detect(place, pico, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors.unfinished"]
    batches = load_scores(
        tmp_path / "m.safetensors.unfinished" / "corpus.scores.safetensors"
    ).provenance["unfinished"]["batches"]
    assert batches == min(5, call // 2 - 1)
    _detect(place, pico, tmp_path, resume=True)
    assert _bytes(tmp_path) == whole


def test_stopped_twice_and_with_another_selection(
    place: Path, pico: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for call in (6, 5):
        with pytest.MonkeyPatch.context() as patched:
            _stop_at(patched, call)
            with pytest.raises(Stop):
                _detect(
                    place, pico, tmp_path, resume=call == 5, select_by="epsilon=0", combine="none"
                )
    _detect(place, pico, tmp_path, resume=True)
    assert _bytes(tmp_path) == whole


def test_without_resume_it_begins_again(place: Path, pico: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        _stop_at(patched, 4)
        with pytest.raises(Stop):
            _detect(place, pico, tmp_path)
    _detect(place, pico, tmp_path, corpus=f"{place}/good.txt", against=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(NAMES[:2])


def test_another_run_does_not_resume(place: Path, pico: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        _stop_at(patched, 4)
        with pytest.raises(Stop):
            _detect(place, pico, tmp_path)
    kept = {p.name: p.read_bytes() for p in unfinished_directory(tmp_path / NAMES[0]).iterdir()}
    differing: list[tuple[dict[str, Any], str]] = [
        ({"corpus": f"{place}/good.txt", "against": f"{place}/bad.txt"}, "corpus was bad.txt"),
        ({"kinds": ["ffn"]}, "kinds was ffn,q,k,v and is ffn"),
        ({"dtype": "bfloat16"}, "dtype was float32 and is bfloat16"),
        ({"system": "Be kind."}, "system_prompt was None"),
    ]
    for change, words in differing:
        with pytest.raises(MismatchError, match=words):
            _detect(place, pico, tmp_path, resume=True, **change)
    assert kept == {
        p.name: p.read_bytes() for p in unfinished_directory(tmp_path / NAMES[0]).iterdir()
    }
    unfinished_file = unfinished_directory(tmp_path / NAMES[0]) / "corpus.scores.safetensors"
    _detect(place, pico, tmp_path / "other")
    tensors, told = read_tensors(unfinished_file, "snt-scores")
    told["unfinished"]["batches"] += 1
    write_tensors(unfinished_file, tensors, told)
    with pytest.raises(FormatError, match="damaged"):
        _detect(place, pico, tmp_path, resume=True)
    unfinished_file.write_bytes((tmp_path / "other" / NAMES[1]).read_bytes())
    with pytest.raises(FormatError, match="no unfinished detection"):
        _detect(place, pico, tmp_path, resume=True)
    with pytest.raises(RequestError, match="no checkpoint"):
        _detect(place, pico, tmp_path / "other", resume=True)


def test_a_killed_process_resumes(
    place: Path, pico: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    words = [
        *("detect", str(pico), "--corpus", f"{place}/bad.txt", "--against", f"{place}/good.txt"),
        *("--select", "budget=5%", "-o", NAMES[0]),
    ]
    # Every batch is saved and then takes long enough to be killed in.
    code = (
        "import sys, time, snt.unfinished as u; from snt.cli import main\n"
        "u.SAVE_SECONDS = 0.0; save = u.Checkpoint.save\n"
        "def slow(self): save(self); print('saved', flush=True); time.sleep(0.5)\n"
        "u.Checkpoint.save = slow; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "saved\n"
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors.unfinished"]
    done = snt(*words, "--resume", "-q", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert _bytes(tmp_path) == whole


def test_saving_waits_for_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(unfinished, "save_scores", lambda _file, path: saved.append(len(saved)))
    anatomy: Any = None
    checkpoint = unfinished.Checkpoint(tmp_path / "c", anatomy, {}, [1, 1])
    checkpoint.on_batch(Tally(batches=1))
    assert not saved
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    checkpoint.on_batch(Tally(batches=2))
    checkpoint.save()
    assert len(saved) == 1


def test_the_plan_tells_prompts_and_their_batches() -> None:
    def batch(*rows: list[int]) -> Batch:
        ids = torch.tensor(rows)
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool))

    plans = [
        [batch([1, 2]), batch([3, 4])],
        [batch([1, 2], [3, 4])],
        [batch([3, 4]), batch([1, 2])],
    ]
    assert len({plan_digest(plan) for plan in plans}) == 3


def test_a_backend_may_go_layer_by_layer(pico: Path) -> None:
    from snt.backend import get_backend
    from snt.scoring import group_by_length

    model: Any = get_backend("full").load(pico)
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 250, (n,), generator=draw).tolist() for n in (1, 9, 4, 30, 2)]
    batches = group_by_length(prompts, 0, size=2)

    class ByLayer:
        """The same model, shown one layer at a time."""

        anatomy, dtype, weight = model.anatomy, model.dtype, model.weight

        def observe(self, batches: Any, visitor: Any, beginning: Any) -> None:
            shown: list[Any] = []
            model.observe(batches, lambda *words: shown.append(words), beginning)
            for words in sorted(shown, key=lambda words: -words[0]):
                visitor(*words)

    other: LoadedModel = ByLayer()  # type: ignore[assignment]
    one, two = (detect_scores(m, batches).scores for m in (model, other))
    for at, held in one.places.items():
        assert torch.equal(held.minimum, two.places[at].minimum)
        assert torch.equal(held.histogram, two.places[at].histogram)


def test_halves_in_one_process_merge_to_the_whole(
    place: Path, pico: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    opened = open_model(ModelChoice(str(pico), offline=True), exact=True)
    texts = corpora.load(f"{place}/bad.txt")
    made = {"importance": "exact", "positions": "all", "seed": 0}

    def half(number: int, resume: bool) -> NamedScores:
        shard = Shard(number, 2)
        scored = score_corpus(
            *(opened, "corpus", texts, KINDS, made, tmp_path, Silence()), shard=shard, resume=resume
        )
        return NamedScores(str(number), scored.file)

    halves = [half(1, False), half(2, False)]
    save_scores(merged(halves).file, tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == whole[NAMES[1]]
    with pytest.MonkeyPatch.context() as patched:
        _stop_at(patched, 0)  # everything is taken up: no batch is run again
        again = [half(1, True), half(2, True)]
    save_scores(merged(again).file, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == whole[NAMES[1]]
