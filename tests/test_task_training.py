"""The fine-tune on the task and its scores, against what transformers computes itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_pico

from snt import corpora
from snt.chat import Chat
from snt.deltas import Deltas, masked_slices
from snt.errors import RequestError
from snt.masks import NeuronMask
from snt.objective import right_padded
from snt.opening import ModelChoice, OpenModel, open_model
from snt.rehearsal_steps import material_of
from snt.robust.held import Held
from snt.robust.settings import TaskSchedule
from snt.robust.task_data import Task, TaskItem
from snt.robust.task_scoring import response_loss, score_task
from snt.robust.task_training import (
    FineTune,
    as_measured,
    examples_of,
    fine_tune,
    merge_deltas,
    whole_model,
)
from snt.training_plan import Schedule

ITEMS = [TaskItem(f"Count to {n}", "one two three"[: 3 + n], str(n)) for n in range(6)]


@pytest.fixture
def opened(pico: Path) -> OpenModel:
    return open_model(ModelChoice(str(pico), dtype="float32"))


def mask_of(opened: OpenModel) -> NeuronMask:
    places = [(layer, kind) for layer in (0, 1) for kind in ("ffn", "q", "k", "v")]
    return NeuronMask(
        opened.model.anatomy,
        {place: torch.tensor([1, 4], dtype=torch.int32) for place in places},
    )


def test_the_loss_of_responses_is_that_of_transformers(opened: OpenModel) -> None:
    pairs, cut = examples_of(opened.chat, ITEMS, 512)
    assert cut == 0 and len(pairs) == 6
    found = response_loss(opened.model, opened.chat, pairs)
    for pair, nats, tokens in zip(pairs, found.nats, found.tokens, strict=True):
        ids = torch.tensor([list(pair.ids)])
        labels = ids.clone()
        labels[:, : pair.start] = -100
        expected = opened.model.model(input_ids=ids, labels=labels).loss  # type: ignore[attr-defined]
        assert nats / tokens == pytest.approx(float(expected), rel=1e-4)
        assert tokens == len(pair.ids) - pair.start


def test_rows_are_cut_and_prompts_without_room_left_out(opened: OpenModel) -> None:
    whole, _ = examples_of(opened.chat, ITEMS, 512)
    longest = whole[0].start + 2
    pairs, cut = examples_of(opened.chat, ITEMS, longest)
    assert cut == 6 and all(len(pair.ids) == longest for pair in pairs)
    with pytest.raises(RequestError, match="--task-longest"):
        examples_of(opened.chat, ITEMS, 3)
    small = replace(opened.chat, context=longest)
    assert all(len(pair.ids) <= longest for pair in examples_of(small, ITEMS, 512)[0])


def test_merged_deltas_compute_what_attached_ones_do(opened: OpenModel) -> None:
    deltas = Deltas.zeros(masked_slices(mask_of(opened)), opened.model)
    with torch.no_grad():
        for value in deltas.values:
            value.normal_(0.0, 0.1)
    batch = right_padded([opened.chat.prompt_ids("Make tea"), opened.chat.prompt_ids("Go")], 0)
    with torch.inference_mode():
        plain = opened.model.hidden(batch)
        with deltas.attached(opened.model):
            attached = opened.model.hidden(batch)
    merge_deltas(opened.model, deltas.tensors())
    with torch.inference_mode():
        merged = opened.model.hidden(batch)
    torch.testing.assert_close(merged, attached, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, merged)


@pytest.mark.parametrize("via", ["full", "lora"])
@pytest.mark.parametrize("half", [False, True])
def test_a_fine_tune_learns_and_repeats(pico: Path, via: str, half: bool) -> None:
    schedule = TaskSchedule(epochs=6, learning_rate=1e-2, batch=4, rows_at_once=2, rank=4)
    losses = []
    for _ in range(2):
        opened = open_model(ModelChoice(str(pico), dtype="float32"))
        pairs, _ = examples_of(opened.chat, ITEMS, 512)
        before = response_loss(opened.model, opened.chat, pairs).value
        found = fine_tune(
            opened.model,
            "full",
            opened.chat,
            ITEMS,
            schedule,
            via,
            3,
            half=half,  # type: ignore[arg-type]
        )
        assert found.steps == 9 == len(found.losses)
        assert response_loss(opened.model, opened.chat, pairs).value < 0.8 * before
        assert not any(p.requires_grad for p in opened.model.model.parameters())  # type: ignore[attr-defined]
        losses.append(found.losses)
    assert losses[0] == losses[1] and found.as_json()["loss_last"] < found.as_json()["loss_first"]


@pytest.mark.parametrize("via", ["full", "lora"])
def test_protected_neurons_keep_every_bit(pico: Path, via: str) -> None:
    schedule = TaskSchedule(epochs=2, learning_rate=1e-2, batch=4, rows_at_once=4, rank=4)
    opened = open_model(ModelChoice(str(pico), dtype="float32"))
    mask = mask_of(opened)
    before = opened.model.weight(0, "mlp.up_proj").clone()
    found = fine_tune(
        opened.model,
        "full",
        opened.chat,
        ITEMS,
        schedule,
        via,
        0,
        mask,  # type: ignore[arg-type]
    )
    assert found.protected == mask.parameters and found.protected_changed == 0
    after = opened.model.weight(0, "mlp.up_proj")
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert [n for n, kept in enumerate(same) if kept] == [1, 4]


@pytest.mark.parametrize("via", ["full", "lora"])
def test_rehearsed_neurons_move_in_half_precision_too(opened: OpenModel, via: str) -> None:
    schedule = TaskSchedule(epochs=2, learning_rate=1e-2, batch=4, rows_at_once=4, rank=4)
    mask = mask_of(opened)
    before = opened.model.weight(0, "mlp.up_proj").clone()
    pairs = [(f"Harm {n}", "No.") for n in range(4)]
    kept = corpora.load("harmless/tune")
    material = material_of(
        opened.model,
        opened.chat,
        pairs,
        [replace(kept, rows=kept.rows[:4])],
        Schedule(learning_rate=1e-3, batch=2, retain_batch=2),
        every=1,
    )
    words = (opened.model, "full", opened.chat, ITEMS, schedule, via, 0, mask, material, True)
    found = fine_tune(*words)  # type: ignore[arg-type]
    assert found.rehearsed == found.steps == 3 and not found.protected_changed
    moved = (opened.model.weight(0, "mlp.up_proj") - before).abs().amax(dim=1)[[1, 4]]
    assert bool((moved > 0).all()) and float(moved.max()) <= 3.3e-3


def test_a_score_counts_right_answers_and_needs_them(opened: OpenModel) -> None:
    task = Task("counting", tuple(ITEMS), tuple(ITEMS[:3]))
    score = score_task(opened.model, opened.chat, task, 3, 512, 2)
    assert len(score.correct) == len(score.replies) == 3 and math.isfinite(score.responses.value)
    bare = Task("bare", tuple(ITEMS), (TaskItem("Say", "so"),))
    assert score_task(opened.model, opened.chat, bare, 3, 512, 2).correct == ()


def test_only_a_whole_float32_model_is_fine_tuned(pico: Path) -> None:
    half = open_model(ModelChoice(str(pico), dtype="bfloat16"))
    with pytest.raises(RequestError, match="--backend full"):
        fine_tune(half.model, "other", half.chat, ITEMS, TaskSchedule(), "full", 0)


def test_a_model_without_a_template_is_fine_tuned(tmp_path: Path) -> None:
    opened = open_model(ModelChoice(str(write_pico(tmp_path / "bare", template=None))))
    assert isinstance(opened.chat, Chat) and not opened.chat.has_template
    schedule = TaskSchedule(epochs=1, batch=6, rows_at_once=6)
    bare = open_model(ModelChoice(str(tmp_path / "bare"), dtype="float32"))
    assert fine_tune(bare.model, "full", bare.chat, ITEMS, schedule, "full", 0).steps == 1


def test_a_held_model_comes_back_to_the_bit(opened: OpenModel, pico: Path) -> None:
    model = whole_model(opened.model, opened.backend)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held, trained = Held(), FineTune(1, (0.5,), 0)
    held.keep(opened, trained, seed=3)
    as_measured(model, "bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # What transformers computes with when it loads the directory in bfloat16.
    loaded = open_model(ModelChoice(str(pico), dtype="bfloat16")).model
    for (name, mine), (_, theirs) in zip(
        model.named_buffers(),
        loaded.model.named_buffers(),
        strict=True,  # type: ignore[attr-defined]
    ):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), name
    assert held.restored(3) == (opened, trained)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert held.restored(4) is None and held.restored(3) is None  # another seed lets go of it
