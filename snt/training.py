"""The training loop: transformers' Trainer over the deltas alone, the base model beside it.

The Trainer is given a module whose only parameters are the deltas, so that its optimizer and its
checkpoints hold nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from snt.backend import Batch, LoadedModel
from snt.dealt_steps import DealtSteps
from snt.deltas import Deltas
from snt.errors import NegativeResult, RunFailure
from snt.guarding import Guard, Point
from snt.loggers import logger_callbacks
from snt.memory import release
from snt.objective import Step, refusal_loss, retain_loss
from snt.processes import each, leads, world
from snt.recomputing import recomputed
from snt.training_history import History, latest_checkpoint, remove_others
from snt.training_plan import Plan as Plan
from snt.training_plan import Schedule as Schedule

Report = Callable[[int, Mapping[str, float]], None]

# Steps after which freed memory is given back: the allocator keeps more of it with every new shape.
_RELEASE_STEPS = 10


@dataclass(frozen=True)
class Training:
    """What a run did: steps, per step the losses in nats, and the guard's curve.

    `stopped` says that the guard ended it; `kept_step` is the step whose deltas were kept.
    """

    steps: int
    refuse: tuple[float, ...]
    retain: tuple[float, ...]
    text: tuple[float, ...] = ()
    curve: tuple[Point, ...] = ()
    stopped: bool = False
    kept_step: int | None = None


def train(
    model: LoadedModel,
    deltas: Deltas,
    plan: Plan,
    checkpoints: Path,
    resume: bool = False,
    save_steps: int = 0,
    on_step: Report | None = None,
    *,
    guard: Guard | None = None,
    gradient_checkpointing: bool = False,
    report_to: Sequence[str] = (),
    logs: Path | None = None,
) -> Training:
    """Train `deltas` in place. `report_to` loggers write to `logs` where they write files.

    With `resume` the run goes on from its newest complete checkpoint, from the beginning without
    one. Raises RunFailure when a loss is not finite, NegativeResult when no point of the curve was
    within the guard's limit, and what `logger_callbacks` raises.
    """
    loggers = logger_callbacks(report_to, logs or checkpoints / "logs")
    newest = latest_checkpoint(checkpoints) if resume else None
    history = History.load(newest) if newest else History()
    module = _Beside(model, deltas, plan, history)
    trainer = _LoggingTrainer(
        model=module,
        args=_arguments(plan, checkpoints, save_steps, bool(loggers), model),
        train_dataset=DealtSteps(plan, len(plan), world().size) if world().size > 1 else plan,
        data_collator=_only,
        callbacks=[_Reporter(module, on_step, guard), *loggers],
    )
    trainer.remove_callback(_printer())
    first = min((key.layer for key in deltas.keys), default=0)
    recompute = recomputed(model, first) if gradient_checkpointing else nullcontext()
    with model.training(), deltas.attached(model), recompute:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    steps = int(trainer.state.global_step)
    if history.stopped:
        _keep_best(history, deltas, guard)
    return Training(
        steps,
        tuple(history.losses["refuse"]),
        tuple(history.losses["retain"]),
        tuple(history.losses["text"]),
        tuple(history.curve),
        history.stopped,
        history.best_point.step if history.stopped and history.best_point else steps,
    )


def step_loss(model: LoadedModel, step: Step) -> Tensor:
    """The loss of one batch in nats, a scalar; the head is applied only where it is read."""
    device = model.device
    batch = Batch(step.batch.input_ids.to(device), step.batch.real.to(device))
    at = step.read_at.to(device)
    return loss_of(step, model.logits(model.hidden(batch)[at[:, 0], at[:, 1]]))


def loss_of(step: Step, logits: Tensor) -> Tensor:
    """The loss of (n, V) logits at a step's n positions `read_at`, nats, a scalar."""
    device = logits.device
    if step.part == "refuse":
        return refusal_loss(logits, step.targets.to(device), step.refuse_weights.to(device))
    top_ids, top_log = step.top_ids.to(device), step.top_log.to(device)
    return retain_loss(logits, top_ids, top_log, step.retain_weights.to(device))


class _Beside(nn.Module):
    """The deltas as the only parameters; the model is reached through them, never registered."""

    def __init__(self, model: LoadedModel, deltas: Deltas, plan: Plan, history: History) -> None:
        super().__init__()
        self.deltas = deltas
        self.plan, self.history = plan, history
        self.weights = plan.schedule.weights
        self.seen = 0
        self._base = (model,)  # in a tuple, so that no submodule is registered

    @property
    def latest(self) -> dict[str, float]:
        """The losses of the step under way."""
        return {name: values[-1] for name, values in self.history.losses.items() if values}

    def forward(self, step: Step) -> dict[str, Tensor]:
        (model,) = self._base
        if self.seen % self.plan.parts == 0:
            for values in self.history.losses.values():
                values.append(0.0)
        self.seen += 1
        loss = step_loss(model, step)
        if not bool(torch.isfinite(loss)):
            raise RunFailure("the training loss is not finite; lower --lr, or give --dtype float32")
        self.history.losses[step.part][-1] += float(loss.detach())
        # The Trainer averages over the parts of a step, and over processes; their sum is meant.
        return {"loss": world().size * self.plan.parts * self.weights[step.part] * loss}

    def whole_losses(self) -> None:
        """The losses of the step under way, of which each process knows its own rows'."""
        every = each(self.latest, world())
        for name, values in self.history.losses.items():
            if values:
                values[-1] = sum(one[name] for one in every)


class _LoggingTrainer(Trainer):
    """Every logged step with the parts of its loss beside the Trainer's own figures."""

    def log(self, logs: dict[str, float], *words: Any, **more: Any) -> None:
        if "loss" in logs and isinstance(self.model, _Beside):
            logs = {**logs, **{f"loss_{name}": v for name, v in self.model.latest.items()}}
            curve = self.model.history.curve
            if curve and curve[-1].step == self.state.global_step:
                point = curve[-1]
                logs |= {"non_refusal": point.non_refusal, "over_refusal": point.over_refusal}
        super().log(logs, *words, **more)


class _Reporter(TrainerCallback):
    """Tells of every step, measures where the guard is due, completes checkpoints."""

    def __init__(self, module: _Beside, on_step: Report | None, guard: Guard | None) -> None:
        self.module, self.on_step, self.guard = module, on_step, guard

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._measure(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = int(state.global_step)
        self.module.whole_losses()
        if step % _RELEASE_STEPS == 0:
            release()
        if self.on_step is not None:
            self.on_step(step, self.module.latest)
        if self.guard is not None and self.guard.due(step, self.module.plan.steps):
            self._measure(step)
            control.should_training_stop |= self.module.history.stopped

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not leads():
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.module.history.save(checkpoint)
        remove_others(checkpoint)

    def _measure(self, step: int) -> None:
        if self.guard is not None:
            values = list(self.module.deltas.values)
            point = Point(step, *self.guard.measure())
            self.module.history.add_point(point, self.guard, values)


def _keep_best(history: History, deltas: Deltas, guard: Guard | None) -> None:
    if history.best_point is None:
        last, limit = history.curve[-1], guard.limit if guard else None
        raise NegativeResult(
            f"after {last.step} steps {last.over_refusal:.1%} of the guard's look-alikes were "
            f"refused, above the {limit:.1%} of --max-over-refusal, and no point before it was "
            "within; lower --lr, raise --retain-weight, or measure more often with --guard-every"
        )
    history.put_best(list(deltas.values))


def _arguments(
    plan: Plan, checkpoints: Path, save_steps: int, logged: bool, model: LoadedModel
) -> TrainingArguments:
    schedule = plan.schedule
    shape = "constant_with_warmup" if schedule.shape == "constant" else schedule.shape
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=plan.parts,
        max_steps=plan.steps,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type=shape,
        warmup_steps=round(schedule.warmup * plan.steps),
        weight_decay=schedule.weight_decay,
        max_grad_norm=1.0,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or plan.steps,
        # The plan has drawn its order already; a second draw would part refusing from keeping.
        train_sampling_strategy="sequential",
        logging_strategy="steps" if logged else "no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=schedule.seed,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,
        # In several processes: every delta has a part in every row.
        ddp_find_unused_parameters=False,
    )


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _only(items: list[Step]) -> dict[str, Step]:
    return {"step": items[0]}
