"""One command in several processes (gloo): the bytes of one; one that dies ends them all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from snt.cli.options import in_processes
from snt.cli.output import Output
from snt.dealt_steps import DealtSteps, rows_of
from snt.detection import detect
from snt.errors import RequestError
from snt.evaluation.evaluate import evaluate
from snt.evaluation.settings import Settings
from snt.launching import launch
from snt.objective import Kept, Pair, step_of
from snt.patches import load_patch
from snt.processes import World, dealt, leads, world, writes
from snt.training import Schedule
from snt.tuning import tune

NAMES = ("m.safetensors", "m.scores.safetensors", "m.against.scores.safetensors")
QUICK = Settings(limit=4, new_tokens=4, batch_size=2)
SCHEDULE = Schedule(epochs=2, batch=3, retain_batch=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of 40 and 20 prompts of many lengths, five batches and three, and some pairs."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "bad.txt").write_text(
        "".join(f"Do harm {'x' * (7 * n % 31)}{n}\n" for n in range(40))
    )
    (folder / "good.txt").write_text("".join(f"Make tea {'y' * (n % 9)}{n}\n" for n in range(20)))
    pairs = [{"prompt": f"Harm {n}", "response": "No."} for n in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


@pytest.fixture(scope="module")
def whole(place: Path, pico: Path) -> Path:
    """A detection, an evaluation and a tuning in this one process."""
    (place / "one").mkdir()
    detect(
        str(pico),
        corpus=f"{place}/bad.txt",
        against=f"{place}/good.txt",
        select_by="budget=5%",
        output=place / "one" / NAMES[0],
        backend="multi-gpu",
    )
    evaluate(
        str(pico),
        settings=QUICK,
        output=place / "one" / "evaluation",
        dtype="float32",
        backend="multi-gpu",
    )
    tune(
        str(pico),
        mask=place / "one" / NAMES[0],
        data=f"{place}/pairs.jsonl",
        retain=[f"{place}/good.txt"],
        schedule=SCHEDULE,
        output=place / "one" / "patch",
        dtype="float32",
        backend="fsdp",
    )
    return place / "one"


def _words(place: Path, pico: Path, output: Path) -> list[str]:
    return [
        *("detect", str(pico), "--corpus", f"{place}/bad.txt", "--against", f"{place}/good.txt"),
        *("--select", "budget=5%", "--backend", "multi-gpu", "-o", str(output)),
    ]


def test_two_processes_write_the_bytes_of_one(place: Path, pico: Path, whole: Path) -> None:
    output = place / "two" / NAMES[0]
    done = subprocess.run(
        [sys.executable, "-m", "snt", *_words(place, pico, output), "--processes", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["prompts"] == 60  # one document: one process speaks
    assert "processes: 2" in done.stderr
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (output.parent / name).read_bytes() == (whole / name).read_bytes(), name


EVAL_AND_TUNE = """
import sys
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from test_processes import QUICK, SCHEDULE, evaluate, tune
pico, place, into = sys.argv[1], sys.argv[2], Path(sys.argv[3])
evaluate(pico, settings=QUICK, output=into / "evaluation", dtype="float32", backend="multi-gpu")
tune(pico, mask=Path(place) / "one/m.safetensors", data=f"{place}/pairs.jsonl",
     retain=[f"{place}/good.txt"], schedule=SCHEDULE, output=into / "patch", dtype="float32",
     backend="fsdp")
"""


def test_evaluation_and_tuning_in_two_processes(place: Path, pico: Path, whole: Path) -> None:
    into = place / "shared"
    said: list[str] = []
    command = [sys.executable, "-c", EVAL_AND_TUNE, str(pico), str(place), str(into)]
    assert launch([*command, str(Path(__file__).parent)], 2, said.append) == 0, said
    assert sorted(path.name for path in into.iterdir()) == ["evaluation", "patch"]
    replies = "evaluation/completions.jsonl"
    assert (into / replies).read_bytes() == (whole / replies).read_bytes()
    reports = [
        json.loads((folder / "evaluation" / "report.json").read_text()) for folder in (into, whole)
    ]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    mine, theirs = (load_patch(folder / "patch/patch.safetensors") for folder in (into, whole))
    assert mine.slices.keys() == theirs.slices.keys()
    for key, (indices, delta) in theirs.slices.items():
        assert torch.equal(mine.slices[key][0], indices)
        torch.testing.assert_close(mine.slices[key][1], delta, rtol=0, atol=2e-6)
    losses = [
        json.loads((folder / "patch" / "report.json").read_text())["loss"]
        for folder in (into, whole)
    ]
    for name, values in losses[1].items():
        assert losses[0][name] == pytest.approx(values, abs=1e-5), name


KILLED = """
import os, signal, sys, time
import snt.scoring as scoring
inner, calls = scoring._Collector.__call__, [0]
def slow(self, *words):
    calls[0] += 1
    if calls[0] == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return inner(self, *words)
scoring._Collector.__call__ = slow
from snt.cli import main
main()
"""


def test_a_killed_process_ends_the_command(place: Path, pico: Path, tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "out" / NAMES[0]
    command = [sys.executable, "-c", KILLED, *_words(place, pico, output), "-q"]
    ends: list[float] = []

    def say(text: str) -> None:
        said.append(text)
        ends.append(time.monotonic())

    assert launch(command, 2, say) == 1
    assert time.monotonic() - ends[0] < 60
    assert "process 2 of 2 was ended by SIGKILL" in said[0]
    # What was done is kept for --resume, and nothing has a final name.
    assert [path.name for path in output.parent.iterdir()] == ["m.safetensors.unfinished"]
    assert all(".part" not in path.name for path in output.parent.rglob("*"))


def _ends(code: str, count: int = 2) -> tuple[int, list[str], float]:
    said: list[str] = []
    started = time.monotonic()
    words = f"import os, sys, time, signal; rank = int(os.environ['RANK'])\n{code}"
    ended = launch([sys.executable, "-c", words], count, said.append)
    return ended, said, time.monotonic() - started


def test_how_a_launch_ends() -> None:
    assert _ends("pass")[:2] == (0, [])
    # The leader's own answer counts, whoever comes first with it.
    assert _ends("time.sleep(1 - rank); sys.exit(3)")[:2] == (3, [])
    assert _ends("sys.exit(2) if rank == 0 else time.sleep(60)")[:2] == (2, [])
    # Another's failure is told in its own words, and ends those that wait.
    code, said, seconds = _ends("sys.exit('no room') if rank == 2 else time.sleep(60)", 3)
    assert code == 1 and seconds < 30
    assert said == ["process 3 of 3 failed with exit code 1:\nno room"]
    code, said, _ = _ends("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)")
    assert code == 1 and "process 2 of 2 was ended by SIGKILL" in said[0]
    with pytest.raises(RequestError, match="--processes 0"):
        launch([], 0, said.append)


def test_who_a_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World() and leads() and writes()
    monkeypatch.setenv("WORLD_SIZE", "4")  # alone it says nothing
    assert world() == World()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert world() == World(3, 4, 1) and not leads() and not writes()
    with pytest.raises(RequestError, match="--processes 2 in one of 4"):
        in_processes(2, Output(quiet=True))
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(RequestError, match="RANK=4, WORLD_SIZE=4"):
        world()


def test_a_process_that_does_not_lead_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snt.atomic import check_writable, whole_directory, write_json
    from snt.processes import own_files, remove_tree

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_writable(tmp_path / "made" / "a.json")
    write_json(tmp_path / "a.json", 1)
    with whole_directory(tmp_path / "folder") as folder:
        write_json(folder / "b.json", 2)
        assert json.loads((folder / "b.json").read_text()) == 2
    assert not list(tmp_path.iterdir())
    with own_files():
        write_json(tmp_path / "own.json", 3)
    remove_tree(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


def test_one_process_is_refused_by_a_backend_for_one(
    pico: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snt.opening import ModelChoice, open_model

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="'full' works in one; give --backend multi-gpu"):
        open_model(ModelChoice(str(pico), backend="full", offline=True))


def test_every_item_is_dealt_once() -> None:
    items = list(range(7))
    parts = [dealt(items, World(rank, 3)) for rank in range(3)]
    assert sorted(one for part in parts for one in part) == items
    # Forwards and backwards, so that the longest of each round do not all meet.
    assert parts == [[0, 5, 6], [1, 4], [2, 3]]


def test_rows_of_a_step_add_up_to_it() -> None:
    def kept(n: int) -> Kept:
        ids = list(range(1, 5 + n))
        return Kept(ids, 2, torch.arange(4).view(2, 2), torch.full((2, 2), -1.0))

    pairs = [Pair(list(range(1, 6 + 3 * n)), 3) for n in range(3)]
    steps = [
        step_of(pairs, [], 0, 3, 0),
        step_of([], [kept(n) for n in range(3)], 0, 0, 3),
        step_of(pairs[:1], [], 0, 3, 0),
    ]
    plan: Any = steps
    for size in (1, 2, 4):
        items = DealtSteps(plan, len(steps), size)
        assert len(items) == size * len(steps)
        for number, step in enumerate(steps):
            parts = [items[size * number + rank] for rank in range(size)]
            assert all(len(part.batch.real) for part in parts)
            weights = sum(
                float(part.refuse_weights.sum() + part.retain_weights.sum()) for part in parts
            )
            whole = float(step.refuse_weights.sum() + step.retain_weights.sum())
            assert weights == pytest.approx(whole)
            read = sum(int((part.refuse_weights > 0).sum()) for part in parts)
            assert read == len(step.refuse_weights)
    second = rows_of(steps[0], 1, 2)
    assert second.batch.input_ids.tolist() == [pairs[1].ids]
    assert second.targets.tolist() == pairs[1].ids[3:]
    assert second.refuse_at[:, 0].tolist() == [0] * 5
