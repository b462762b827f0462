"""Rehearsal: protected neurons take steps of SN-Tune and no others, whatever trains the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_protection import Words, mask_of, slices
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import snt
from snt.deltas import Deltas, masked_slices
from snt.errors import RequestError
from snt.opening import ModelChoice, OpenModel, open_model
from snt.rehearsal import Rehearsal
from snt.rehearsal_steps import Material, material_of
from snt.training import step_loss
from snt.training_plan import Schedule

SCHEDULE = Schedule(learning_rate=1e-2, batch=2, retain_batch=2, seed=3)


@pytest.fixture
def opened(pico: Path) -> OpenModel:
    return open_model(ModelChoice(str(pico), dtype="float32"))


def material(opened: OpenModel, every: int = 1) -> Material:
    from snt import corpora

    pairs = [(f"Harm {n}", "No.") for n in range(4)]
    kept = [replace(corpora.load("harmless/tune"), rows=corpora.load("harmless/tune").rows[:4])]
    return material_of(opened.model, opened.chat, pairs, kept, SCHEDULE, every)


def alone(opened: OpenModel, material: Material, steps: int) -> Deltas:
    """The same steps on deltas that stay beside a model that nothing else trains."""
    deltas = Deltas.zeros(masked_slices(mask_of(plain(opened))), opened.model)
    optimizer = torch.optim.AdamW(deltas.parameters(), lr=SCHEDULE.learning_rate, weight_decay=0.0)
    with opened.model.training(), deltas.attached(opened.model):
        for number in range(steps):
            plan = material.pass_number(number // 2)
            for part in range(plan.parts):
                step = plan[(number % 2) * plan.parts + part]
                (plan.schedule.weights[step.part] * step_loss(opened.model, step)).backward()
            torch.nn.utils.clip_grad_norm_(deltas.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return deltas


def plain(opened: OpenModel) -> Any:
    return opened.model.model  # type: ignore[attr-defined]


def test_the_steps_are_those_of_a_tuning_and_nothing_else_moves(opened: OpenModel) -> None:
    model, mask = plain(opened), mask_of(plain(opened))
    given = material(opened)
    expected = alone(opened, given, 3).tensors()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Rehearsal(model, mask, lambda: given) as rehearsal:
        for _ in range(3):
            model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert not rehearsal.changed()
    assert len(rehearsal.losses) == 3 and rehearsal.losses[2] < rehearsal.losses[0]
    for key, (indices, delta) in expected.items():
        name = f"model.layers.{key.layer}.{key.module}.weight"
        before[name].index_add_(0 if key.axis == "rows" else 1, indices.long(), delta)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-5, msg=name)


def test_small_steps_are_not_lost_to_half_precision(pico: Path) -> None:
    opened = open_model(ModelChoice(str(pico), dtype="bfloat16"))
    model, mask = plain(opened), mask_of(plain(opened))
    given = material(opened)
    small = replace(given, schedule=replace(given.schedule, learning_rate=1e-5))
    before = {key: value.float() for key, value in slices(model, mask).items()}
    with Rehearsal(model, mask, lambda: small) as rehearsal:
        for _ in range(4):
            rehearsal.step()
    assert rehearsal._tuner is not None
    deltas = rehearsal._tuner.deltas
    left = dict(zip(deltas.keys, deltas.values, strict=True))
    for key, now in slices(model, mask).items():
        moved = now.float() + left[key].detach() - before[key]
        # Four steps of Adam, each of about the learning rate; a weight of 0.02 has steps of 6e-5.
        assert 1e-6 < float(moved.abs().mean()) < 5e-5, key
        assert float(left[key].detach().abs().max()) <= float(now.float().abs().max()) * 2**-8, key


@pytest.mark.parametrize(("every", "half"), [(1, False), (2, True)])
def test_a_trainer_of_your_own(pico: Path, tmp_path: Path, every: int, half: bool) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Harm {n}", "response": "No."}) + "\n" for n in range(4))
    )
    (tmp_path / "good.txt").write_text("Make tea\nName a day\n")
    model = AutoModelForCausalLM.from_pretrained(pico, dtype=torch.float32)
    mask = mask_of(model)
    before = slices(model, mask)

    def callback_of(model: Any) -> Rehearsal:
        tokenizer = AutoTokenizer.from_pretrained(pico)
        given = {"data": str(tmp_path / "pairs.jsonl"), "retain": [str(tmp_path / "good.txt")]}
        return snt.rehearse(model, tokenizer, mask, every=every, **given)  # type: ignore[arg-type]

    callback = callback_of(model)
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=4,
        bf16=half,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to="none",
        save_steps=2,
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model=model, args=args, train_dataset=Words(), callbacks=[callback]).train()
    assert len(callback.losses) == 4 // every and not callback.changed()
    assert model.training  # as the Trainer left it
    halfway = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-2")
    again = callback_of(model)
    trainer = Trainer(model=model, args=args, train_dataset=Words(), callbacks=[again])
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert len(again.losses) == 2 // every
    # What was rehearsed before the checkpoint is not undone: it goes on from there.
    held, now = slices(halfway, mask), slices(model, mask)
    first, second = (
        sum(float((some[key] - before[key]).abs().sum()) for key in before) for some in (held, now)
    )
    assert second > 1.3 * first
    moved = [float((now[key] - before[key]).abs().max()) for key in before]
    # Each step of Adam moves an entry by the rate at most, and the task's steps of 1e-2 not at all.
    assert all(0 < one <= 1.1e-3 * (4 // every) for one in moved)


def test_the_best_checkpoint_keeps_what_was_rehearsed_by_then(
    opened: OpenModel, tmp_path: Path
) -> None:
    model, mask, given = plain(opened), mask_of(plain(opened)), material(opened)
    model.requires_grad_(True)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        learning_rate=1e-2,
        report_to="none",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the first checkpoint is the best
        disable_tqdm=True,
        use_cpu=True,
    )
    rehearsal = Rehearsal(model, mask, lambda: given)
    data = {"train_dataset": Words(), "eval_dataset": Words()}
    Trainer(model=model, args=args, callbacks=[rehearsal], **data).train()
    assert len(rehearsal.losses) == 3 and not rehearsal.changed()


def test_the_first_optimizer_of_the_model_is_the_one_that_counts(opened: OpenModel) -> None:
    model, mask, given = plain(opened), mask_of(plain(opened)), material(opened, every=2)
    model.requires_grad_(True)
    other = torch.nn.Parameter(torch.zeros(3))
    first, second, foreign = (
        torch.optim.SGD(parameters, lr=1e-3)
        for parameters in ([*model.parameters()][:5], [*model.parameters()][5:], [other])
    )
    with Rehearsal(model, mask, lambda: given) as outer:
        with Rehearsal(model, mask, lambda: given) as inner:
            inner.step()  # steps of another rehearsal are nobody's
        outer.restore()
        for _ in range(4):
            foreign.step()
            first.step()
            second.step()
    assert len(outer.losses) == 2


def test_half_of_a_model_trained_in_half_precision(opened: OpenModel) -> None:
    model, mask, given = plain(opened), mask_of(plain(opened)), material(opened)
    model.requires_grad_(True)
    model.model.layers[0].requires_grad_(False)  # its products are made otherwise
    with Rehearsal(model, mask, lambda: given) as rehearsal:
        rehearsal._half = True
        for _ in range(4):
            rehearsal.step()
    assert rehearsal.losses[2] < rehearsal.losses[0]


def test_a_training_that_cannot_begin_leaves_the_model_alone(opened: OpenModel) -> None:
    model, mask = plain(opened), mask_of(plain(opened))
    model.requires_grad_(True)

    def fails() -> Material:
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"), Rehearsal(model, mask, fails):
        pass
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    weight = model.model.layers[0].mlp.gate_proj.weight
    assert weight.grad is not None and bool(weight.grad[[0, 3, 5]].any(dim=1).all())


def test_what_cannot_be_rehearsed(pico: Path, opened: OpenModel) -> None:
    model, mask = plain(opened), mask_of(plain(opened))
    with pytest.raises(RequestError, match="at least 1"):
        material(opened, every=0)
    given = material(opened)
    rehearsal = Rehearsal(model, mask, lambda: given)
    with pytest.raises(RequestError, match="begin it"):
        rehearsal.step()
    with pytest.raises(RequestError, match="more than 0"):
        snt.rehearse(model, AutoTokenizer.from_pretrained(pico), mask, learning_rate=0.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.distributed, "is_initialized", lambda: True)
        patched.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(RequestError, match="one process"), rehearsal:
            pass
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(RequestError, match="adapters"):
        snt.rehearse(adapted, AutoTokenizer.from_pretrained(pico), mask)
    # Adapters that come later are found when the training begins.
    bare = AutoModelForCausalLM.from_pretrained(pico)
    late = snt.rehearse(bare, AutoTokenizer.from_pretrained(pico), mask)
    bare.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(RequestError, match="adapters"), late:
        pass
