"""The loop: it learns, checkpoints hold deltas alone, and a resumed run equals an uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snt.backend import get_backend
from snt.chat import Chat
from snt.deltas import Deltas, masked_slices
from snt.errors import RunFailure
from snt.masks import NeuronMask
from snt.objective import Kept, Pair
from snt.retaining import kept_prompts
from snt.training import Plan, Schedule, train

SCHEDULE = Schedule(epochs=4, learning_rate=5e-3, batch=2, retain_batch=2, retain_weight=1.0)


def _setup(pico: Path) -> tuple[Any, Deltas, Plan]:
    model = get_backend("full").load(pico, torch.float32)
    chat = Chat(model.tokenizer, model.context)
    neurons = {
        (layer, kind): torch.arange(12, dtype=torch.int32)
        for layer in range(2)
        for kind in ("ffn", "q", "v")
    }
    deltas = Deltas.zeros(masked_slices(NeuronMask(model.anatomy, neurons)), model)
    pairs = [Pair(*chat.pair_ids(f"Harm {n}", "No.")) for n in range(4)]
    kept = kept_prompts(model, chat, ["Tea?", "Which day?", "Sum"], positions=3)
    return model, deltas, Plan(pairs, [kept], SCHEDULE, chat.pad_id)


def test_a_run_learns_and_keeps_the_base(pico: Path, tmp_path: Path) -> None:
    model, deltas, plan = _setup(pico)
    digests = model.weight_digests()
    steps: list[int] = []
    done = train(model, deltas, plan, tmp_path, on_step=lambda step, _: steps.append(step))
    assert done.steps == 8 and steps == list(range(1, 9))
    assert done.refuse[-1] < 0.8 * done.refuse[0]
    assert len(done.retain) == 8 and done.retain[0] < 1e-4 < done.retain[-1]
    assert model.weight_digests() == digests
    assert model.model.config._attn_implementation != "eager"


class _Stop(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_deltas(pico: Path, tmp_path: Path) -> None:
    model, whole, plan = _setup(pico)
    train(model, whole, plan, tmp_path / "whole")

    def stop(step: int, _losses: Any) -> None:
        if step == 5:
            raise _Stop

    model, part, plan = _setup(pico)
    with pytest.raises(_Stop):
        train(model, part, plan, tmp_path / "part", save_steps=2, on_step=stop)
    (saved,) = (tmp_path / "part").glob("checkpoint-*")
    assert saved.name == "checkpoint-4"
    assert sum(f.stat().st_size for f in saved.iterdir()) < 10 * 4 * part.trainable
    model, again, plan = _setup(pico)
    train(model, again, plan, tmp_path / "part", resume=True)
    for key, (_, delta) in whole.tensors().items():
        assert torch.equal(delta, again.tensors()[key][1]), key


def test_a_loss_that_is_not_finite_fails(pico: Path, tmp_path: Path) -> None:
    model, deltas, plan = _setup(pico)
    with torch.no_grad():
        deltas.values[0][0, 0] = float("nan")
    with pytest.raises(RunFailure, match="not finite"):
        train(model, deltas, plan, tmp_path)


def test_the_plan_covers_every_pair_in_each_epoch() -> None:
    pairs = [Pair([n, 1, 2], 1) for n in range(6)]
    plan = Plan(pairs, [], Schedule(epochs=2, batch=3), pad_id=0)
    assert plan.steps == 4 and len(plan) == 4
    seen = [row[0] for item in range(2) for row in plan[item].batch.input_ids.tolist()]
    assert sorted(seen) == list(range(6))


def test_a_step_is_made_of_parts_that_add_up() -> None:
    pairs = [Pair([n, 1, 2], 1) for n in range(40)]
    top = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    kept = [[Kept([100 + n], 0, *top) for n in range(9)], [Kept([200], 0, *top)], []]
    plan = Plan(pairs, kept, Schedule(epochs=1, batch=32, retain_batch=60), pad_id=0)
    parts = [plan[item] for item in range(plan.parts)]
    assert plan.parts == 3 + 5 and all(len(part.batch.real) <= 12 for part in parts)
    assert sum(float(part.refuse_weights.sum()) for part in parts) == pytest.approx(1.0)
    assert sum(float(part.retain_weights.sum()) for part in parts) == pytest.approx(1.0)
    rows = [row[0] for part in parts[3:] for row in part.batch.input_ids.tolist()]
    assert sum(row >= 200 for row in rows) == 30 and len(rows) == 60
