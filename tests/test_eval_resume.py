"""An evaluation that was stopped ends with the replies and the report of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import snt
from conftest import write_pico
from snt_backends.full import FullModel

from snt.errors import FormatError, MismatchError, RequestError
from snt.evaluation.evaluate import evaluate
from snt.evaluation.settings import Settings
from snt.resuming import unfinished_directory
from snt.unfinished_replies import UnfinishedReplies

FILES = ("baseline.jsonl", "completions.jsonl", "evaluation.html", "report.json")
# 3 metrics of 5 prompts in batches of 4: four batches a model, perplexity after them.
BATCHES = 4


class Stop(BaseException):
    """Stands for Ctrl-C, or for anything else."""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline: another model."""
    return write_pico(tmp_path_factory.mktemp("models") / "other", seed=1)


def _evaluate(pico: Path, other: Path, output: Path, resume: bool = False, **more: Any) -> None:
    settings = Settings(new_tokens=6, batch_size=4, limit=5)
    given: dict[str, Any] = {"settings": settings, "baseline": str(other), "offline": True}
    evaluate(str(pico), output=output, resume=resume, **{**given, **more})


def _files(folder: Path) -> dict[str, Any]:
    """The bytes of the replies, and the report but for what a clock or the machine says."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    report = json.loads((folder / "report.json").read_text())
    for name in ("seconds", "peak_bytes"):
        assert report.pop(name) > 0
    return {**{name: (folder / name).read_bytes() for name in FILES[:2]}, "report": report}


@pytest.fixture(scope="module")
def whole(pico: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an evaluation writes that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        _evaluate(pico, other, Path("ev"))
    return _files(folder / "ev")


def _raise(error: BaseException) -> None:
    raise error


def _stop_at(patched: pytest.MonkeyPatch, call: int, method: str = "generate") -> None:
    """Raise in the `call`th call of a method of the model."""
    if method == "parameters":
        patched.setattr(FullModel, method, property(lambda _: _raise(Stop())))
        return
    inner, calls = getattr(FullModel, method), iter(range(call + 1))

    def stopping(self: Any, *words: Any) -> Any:
        if next(calls, None) == call:
            raise Stop
        return inner(self, *words)

    patched.setattr(FullModel, method, stopping)


@pytest.mark.parametrize(
    ("call", "method", "kept"),
    [
        (0, "parameters", []),  # between loading and the replies
        (0, "generate", [0]),
        (1, "generate", [4]),
        (3, "generate", [12]),
        (0, "hidden", [15]),  # between the replies and the baseline
        (BATCHES, "generate", [15, 0]),
        (BATCHES + 2, "generate", [15, 8]),
        (3, "hidden", [15, 15]),
    ],
)
def test_stopped_anywhere_it_ends_the_same(
    *,
    pico: Path,
    other: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    call: int,
    method: str,
    kept: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        _stop_at(patched, call, method)
        with pytest.raises(Stop):
            _evaluate(pico, other, Path("ev"))
    assert [path.name for path in tmp_path.iterdir()] == ["ev.unfinished"]
    lines = [
        (tmp_path / "ev.unfinished" / name).read_text().splitlines()
        for name in ("completions.jsonl", "baseline.jsonl")[: len(kept)]
    ]
    assert [sum(len(json.loads(row)["replies"]) for row in rows[1:]) for rows in lines] == kept
    _evaluate(pico, other, Path("ev"), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ev"]
    assert _files(tmp_path / "ev") == whole


def test_stopped_while_a_batch_was_written_and_stopped_again(
    pico: Path, other: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (2, 1):
        with monkeypatch.context() as patched:
            _stop_at(patched, call)
            with pytest.raises(Stop):
                _evaluate(pico, other, Path("ev"), resume=call == 1)
        with (tmp_path / "ev.unfinished" / "completions.jsonl").open("a") as file:
            file.write('{"replies": ["half a li')
    _evaluate(pico, other, Path("ev"), resume=True)
    assert _files(tmp_path / "ev") == whole


def test_only_what_is_missing_is_run(
    pico: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        _stop_at(patched, 3, "hidden")
        with pytest.raises(Stop):
            _evaluate(pico, other, tmp_path / "ev")
    _stop_at(monkeypatch, 0)  # no reply is made again
    _evaluate(pico, other, tmp_path / "ev", resume=True)


def test_without_resume_it_begins_again(
    pico: Path, other: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        _stop_at(patched, 2)
        with pytest.raises(Stop):
            _evaluate(pico, other, Path("ev"), system="Be kind.")
    with pytest.raises(RequestError):  # which costs nobody the replies that are there
        _evaluate(pico, other, Path("ev"), backend="ful")
    with pytest.raises(RequestError):
        _evaluate(pico, tmp_path / "nowhere", Path("ev"))
    assert (tmp_path / "ev.unfinished" / "completions.jsonl").is_file()
    _evaluate(pico, other, Path("ev"))
    assert _files(tmp_path / "ev") == whole


def test_other_settings_do_not_resume(
    pico: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "ev"
    with pytest.raises(RequestError, match="leave --resume out"):
        _evaluate(pico, other, output, resume=True)
    with monkeypatch.context() as patched:
        _stop_at(patched, 2)
        with pytest.raises(Stop):
            _evaluate(pico, other, output)
    file = unfinished_directory(output) / "completions.jsonl"
    before = file.read_bytes()
    differing: list[tuple[dict[str, Any], str]] = [
        ({"settings": Settings(new_tokens=7, batch_size=4, limit=5)}, "max_new_tokens was 6"),
        ({"settings": Settings(new_tokens=6, batch_size=5, limit=5)}, "batch_size was 4 and is 5"),
        ({"settings": Settings(new_tokens=6, batch_size=4, limit=4)}, "prompts was"),
        ({"system": "Be kind."}, "system_prompt was None and is Be kind."),
        ({"dtype": "float16"}, "dtype was"),
    ]
    for change, words in differing:
        with pytest.raises(MismatchError, match=words):
            _evaluate(pico, other, output, resume=True, **change)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 3: not JSON"),
        ("[]", "line 3: not an object"),
        ('{"replies": [1], "size": 4}', "line 3: 'replies'"),
        ('{"replies": [], "size": 0}', "line 3: 'size'"),
        ('{"replies": ["a", "b", "c"], "size": 4}', "4 replies to 3 prompts"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, line: str, words: str) -> None:
    held = UnfinishedReplies(tmp_path / "c.jsonl")
    assert held.begin({"model": "m"}, 3).replies == ()
    held.append(4, ["cut \ud83d"])
    assert held.begin({"model": "m"}, 3).replies == ("cut \ud83d",)
    with held.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FormatError, match=words):
        held.begin({"model": "m"}, 3)
    held.path.write_text("{}\n")
    with pytest.raises(FormatError, match="line 1"):
        held.begin({"model": "m"}, 3)


def test_ctrl_c_on_the_command_line(pico: Path, tmp_path: Path) -> None:
    words = [
        *("eval", str(pico), "--suite", "safety", "--limit", "24", "--new-tokens", "8"),
        *("--batch-size", "4", "--offline", "-o", "ev"),
    ]
    # Every batch takes long enough to be stopped in.
    code = (
        "import time, snt.unfinished_replies as u; from snt.cli import main\n"
        "append = u.UnfinishedReplies.append\n"
        "def slow(self, *w): append(self, *w); print('kept', flush=True); time.sleep(0.5)\n"
        "u.UnfinishedReplies.append = slow; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "kept\n"
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in said
    assert [path.name for path in tmp_path.iterdir()] == ["ev.unfinished"]
    done = snt(*words, "--resume", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "replies of the stopped run are taken up" in done.stderr
    again = snt(*words[:-1], "fresh", at=tmp_path)
    assert again.returncode == 0, again.stderr
    first, second = (tmp_path / name / "completions.jsonl" for name in ("ev", "fresh"))
    assert first.read_bytes() == second.read_bytes()


def test_draws_are_recorded(pico: Path, tmp_path: Path) -> None:
    words = ("eval", str(pico), "--suite", "safety", "--limit", "3", "--new-tokens", "4", "--json")
    done = snt(*words, "--top-p", "0.9", "--seed", "7", "--offline", "-o", "ev", at=tmp_path)
    assert done.returncode == 0, done.stderr
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    assert json.loads(done.stdout)["generation"]["sampling"] == sampling
    for line in (tmp_path / "ev" / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["settings"]["sampling"] == sampling and len(row["template"]) == 64
    for more in (("--temperature", "0"), ("--top-p", "2"), ("--batch-size", "0")):
        done = snt(*words, *more, "--offline", "-o", "bad", at=tmp_path)
        assert done.returncode == 2 and more[1] in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ev"]
