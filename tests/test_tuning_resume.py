"""A tuning killed at any step, and taken up again, ends with the same bytes and the same curve."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt
from conftest import write_pico

from snt.masks import NeuronMask, save_mask

# Kills its own process, as the system would, at a step or while a checkpoint is being written.
KILLED = """
import os, signal, sys
import snt.training as training, snt.tuning as tuning
from snt.cli import main
at, where = int(sys.argv.pop(1)), sys.argv.pop(1)
tuning.SAVE_STEPS = 3
def dying(inner, name):
    def call(self, args, state, control, **more):
        if where == name and state.global_step >= at:
            os.kill(os.getpid(), signal.SIGKILL)
        inner(self, args, state, control, **more)
    return call
for name in ("on_step_end", "on_save"):
    setattr(training._Reporter, name, dying(getattr(training._Reporter, name), name))
main()
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a mask, pairs, and prompts of every sort."""
    folder = tmp_path_factory.mktemp("killed")
    write_pico(folder / "pico")
    from transformers import AutoConfig

    from snt.anatomy import anatomy_of

    anatomy = anatomy_of(AutoConfig.from_pretrained(folder / "pico"))
    neurons = {(1, kind): torch.arange(6, dtype=torch.int32) for kind in ("ffn", "q", "v")}
    save_mask(NeuronMask(anatomy, neurons), folder / "m.safetensors")
    (folder / "good.txt").write_text("Make tea\nName a day\nAdd two\n")
    (folder / "text.txt").write_text("The rain fell all day.\nA dog ran home.\n")
    pairs = [{"prompt": f"Harm {n}", "response": "No."} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def _words(output: str, *more: str) -> tuple[str, ...]:
    return (
        *("tune", "./pico", "--mask", "m.safetensors", "--data", "pairs.jsonl"),
        *("--retain", "good.txt", "--retain-text", "text.txt", "--epochs", "3", "--batch", "2"),
        *("--retain-batch", "4", "--no-measure", "--guard-every", "4", "--max-over-refusal", "1"),
        *("--schedule", "cosine", "--warmup", "0.2", "-o", output, *more),
    )


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {name: found[name] for name in ("curve", "loss", "steps", "kept_step", "changed")}


def test_killed_before_within_and_after_checkpoints(place: Path) -> None:
    done = snt(*_words("whole"), at=place)
    assert done.returncode == 0, done.stderr
    whole = _report(place / "whole")
    assert [point["step"] for point in whole["curve"]] == [0, 4, 8, 12]
    assert len(whole["loss"]["text"]) == whole["steps"] == 12
    # Before the first checkpoint; at a step between two; while the third is being written.
    for number, (at, where) in enumerate([(2, "on_step_end"), (5, "on_step_end"), (9, "on_save")]):
        words = _words("part", *(["--resume"] if number else []))
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(at), where, *words],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (place / "part").exists()
        kept = sorted(one.name for one in (place / "part.unfinished").glob("checkpoint-*"))
        assert kept == [[], ["checkpoint-3"], ["checkpoint-6", "checkpoint-9"]][number]
    done = snt(*_words("part", "--resume"), at=place)
    assert done.returncode == 0, done.stderr
    assert _report(place / "part") == whole
    first, again = (place / name / "patch.safetensors" for name in ("whole", "part"))
    assert first.read_bytes() == again.read_bytes()
    assert not (place / "part.unfinished").exists()


def test_other_settings_do_not_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import snt.tuning as tuning
    from snt.errors import RunFailure

    def fail(*_: Any) -> None:
        raise RunFailure("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "prove", fail)
        assert snt(*_words("other"), at=place).returncode == 1
    for more, said in (
        (("--lr", "0.5"), "schedule.learning_rate was 0.002 and is 0.5"),
        (("--system", "Be kind."), "system_prompt was None and is Be kind."),
        (("--max-over-refusal", "0.5"), "guard.max_over_refusal was 1.0 and is 0.5"),
    ):
        done = snt(*_words("other", "--resume", *more), at=place)
        assert done.returncode == 2 and said in " ".join(done.stderr.split()), done.stderr
    (place / "other.unfinished" / "settings.json").write_text("{")
    done = snt(*_words("other", "--resume"), at=place)
    assert done.returncode == 2 and "damaged" in done.stderr
