"""The training loop: transformers' Trainer over the deltas alone, the base model beside it.

The Trainer is given a module whose only parameters are the deltas, so that its optimizer and its
checkpoints hold nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from snt.backend import Batch, LoadedModel
from snt.deltas import Deltas
from snt.errors import RunFailure
from snt.objective import Kept, Pair, Step, refusal_loss, retain_loss, step_of

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `batch` pairs and `retain_batch` kept prompts make a step."""

    epochs: float = 2.0
    learning_rate: float = 2e-3
    batch: int = 8
    retain_batch: int = 16
    retain_weight: float = 1.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0

    def as_json(self) -> dict[str, float]:
        """The settings, as they stand in reports."""
        return asdict(self)

    def steps(self, pairs: int) -> int:
        """Optimizer steps over `pairs` training pairs."""
        return max(1, round(self.epochs * pairs / self.batch))


# Pairs to refuse and prompts to keep go through the model one after the other: each padded to its
# own length, and with half the memory of one batch.
_PARTS = 2


class Plan(Dataset[Step]):
    """Which pairs and prompts meet in which step: each epoch a new order, the same for a seed.

    Item 2n holds the pairs of step n, item 2n + 1 its prompts to keep.
    """

    def __init__(
        self, pairs: Sequence[Pair], kept: Sequence[Kept], schedule: Schedule, pad_id: int
    ) -> None:
        self.pairs, self.kept, self.pad_id = pairs, kept, pad_id
        self.steps = schedule.steps(len(pairs))
        draw = torch.Generator().manual_seed(schedule.seed)
        self.pair_order = _order(len(pairs), self.steps * schedule.batch, draw)
        self.kept_order = _order(len(kept), self.steps * schedule.retain_batch, draw)
        self.schedule = schedule

    def __len__(self) -> int:
        return _PARTS * self.steps

    def __getitem__(self, item: int) -> Step:
        number, part = divmod(item, _PARTS)
        if part == 0:
            size = self.schedule.batch
            chosen = self.pair_order[number * size : (number + 1) * size]
            return step_of([self.pairs[i] for i in chosen], [], self.pad_id)
        size = self.schedule.retain_batch
        chosen = self.kept_order[number * size : (number + 1) * size]
        return step_of([], [self.kept[i] for i in chosen], self.pad_id)


@dataclass(frozen=True)
class Training:
    """What a run did: steps, and per step the losses in nats."""

    steps: int
    refuse: tuple[float, ...]
    retain: tuple[float, ...]


def train(
    model: LoadedModel,
    deltas: Deltas,
    plan: Plan,
    checkpoints: Path,
    resume: bool = False,
    save_steps: int = 0,
    on_step: Report | None = None,
) -> Training:
    """Train `deltas` in place. Raises RunFailure when a loss is not finite."""
    schedule = plan.schedule
    module = _Beside(model, deltas, schedule.retain_weight)
    trainer = Trainer(
        model=module,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=_PARTS,
            max_steps=plan.steps,
            learning_rate=schedule.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=round(schedule.warmup * plan.steps),
            weight_decay=schedule.weight_decay,
            max_grad_norm=1.0,
            save_strategy="steps" if save_steps else "no",
            save_steps=save_steps or plan.steps,
            save_total_limit=1,
            # The plan has drawn its order already; a second draw would part refusing from keeping.
            train_sampling_strategy="sequential",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=schedule.seed,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
        ),
        train_dataset=plan,
        data_collator=_only,
        callbacks=[_Reporter(module, on_step)],
    )
    trainer.remove_callback(_printer())
    with model.training(), deltas.attached(model):
        trainer.train(resume_from_checkpoint=True if resume else None)
    return Training(int(trainer.state.global_step), tuple(module.refuse), tuple(module.retain))


class _Beside(nn.Module):
    """The deltas as the only parameters; the model is reached through them, never registered."""

    def __init__(self, model: LoadedModel, deltas: Deltas, retain_weight: float) -> None:
        super().__init__()
        self.deltas = deltas
        self.retain_weight = retain_weight
        self.refuse: list[float] = []
        self.retain: list[float] = []
        self._base = (model,)  # in a tuple, so that no submodule is registered

    def forward(self, step: Step) -> dict[str, Tensor]:
        (model,) = self._base
        device = model.device
        batch = Batch(step.batch.input_ids.to(device), step.batch.real.to(device))
        at = torch.cat([step.refuse_at, step.retain_at]).to(device)
        if not len(at):  # an empty retain corpus leaves every second part empty
            return {"loss": sum(value.sum() for value in self.deltas.values) * 0.0}
        logits = model.logits(model.hidden(batch)[at[:, 0], at[:, 1]])
        refuse, retain = logits[: len(step.refuse_at)], logits[len(step.refuse_at) :]
        losses = []
        if len(refuse):
            losses.append(
                refusal_loss(refuse, step.targets.to(device), step.refuse_weights.to(device))
            )
            self.refuse.append(float(losses[-1].detach()))
        if len(retain):
            loss = retain_loss(
                retain,
                step.top_ids.to(device),
                step.top_log.to(device),
                step.retain_weights.to(device),
            )
            self.retain.append(float(loss.detach()))
            losses.append(self.retain_weight * loss)
        if not all(bool(torch.isfinite(loss)) for loss in losses):
            raise RunFailure("the training loss is not finite; lower --lr, or give --dtype float32")
        # The Trainer averages over the parts of a step; their sum is meant.
        return {"loss": _PARTS * torch.stack(losses).sum()}


class _Reporter(TrainerCallback):
    def __init__(self, module: _Beside, on_step: Report | None) -> None:
        self.module, self.on_step = module, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_step is not None:
            latest = {"refuse": self.module.refuse, "retain": self.module.retain}
            self.on_step(int(state.global_step), {k: v[-1] for k, v in latest.items() if v})


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _only(items: list[Step]) -> dict[str, Step]:
    return {"step": items[0]}


def _order(size: int, needed: int, draw: torch.Generator) -> list[int]:
    order: list[int] = []
    while size and len(order) < needed:
        order += torch.randperm(size, generator=draw).tolist()
    return order[:needed]
