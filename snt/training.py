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
from snt.memory import release
from snt.objective import Kept, Pair, Step, refusal_loss, retain_loss, step_of

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `batch` pairs and `retain_batch` kept prompts make a step."""

    epochs: float = 4.0
    learning_rate: float = 2e-3
    batch: int = 8
    retain_batch: int = 24
    retain_weight: float = 8.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0

    def as_json(self) -> dict[str, float]:
        """The settings, as they stand in reports."""
        return asdict(self)

    def steps(self, pairs: int) -> int:
        """Optimizer steps over `pairs` training pairs."""
        return max(1, round(self.epochs * pairs / self.batch))


# Rows that go through the model at once: a step is made of parts, each padded to its own length,
# so that memory does not grow with the step.
_PART = 16
# Steps after which freed memory is given back: the allocator keeps more of it with every new shape.
_RELEASE_STEPS = 10


class Plan(Dataset[Step]):
    """Which pairs and prompts meet in which step: each epoch a new order, the same for a seed.

    Every retain corpus has the same share of each step, however long it is. Item
    `parts * n + p` is part p of step n: pairs to refuse first, then prompts to keep.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        kept: Sequence[Sequence[Kept]],
        schedule: Schedule,
        pad_id: int,
    ) -> None:
        self.pairs, self.kept, self.pad_id = pairs, [one for one in kept if one], pad_id
        self.steps = schedule.steps(len(pairs))
        draw = torch.Generator().manual_seed(schedule.seed)
        self.batch = schedule.batch
        self.shares = _shares(schedule.retain_batch, len(self.kept))
        self.pair_order = _order(len(pairs), self.steps * self.batch, draw)
        self.kept_orders = [
            _order(len(one), self.steps * share, draw)
            for one, share in zip(self.kept, self.shares, strict=True)
        ]
        self.schedule = schedule
        self.pair_parts = -(-self.batch // _PART)
        self.parts = self.pair_parts + -(-sum(self.shares) // _PART)

    def __len__(self) -> int:
        return self.parts * self.steps

    def __getitem__(self, item: int) -> Step:
        number, part = divmod(item, self.parts)
        if part < self.pair_parts:
            pairs = [self.pairs[i] for i in _turn(self.pair_order, number, self.batch)]
            return step_of(pairs[part :: self.pair_parts], [], self.pad_id, len(pairs), 0)
        kept = [
            one[i]
            for one, order, share in zip(self.kept, self.kept_orders, self.shares, strict=True)
            for i in _turn(order, number, share)
        ]
        chosen = kept[part - self.pair_parts :: self.parts - self.pair_parts]
        return step_of([], chosen, self.pad_id, 0, len(kept))


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
    module = _Beside(model, deltas, schedule.retain_weight, plan.parts)
    trainer = Trainer(
        model=module,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=plan.parts,
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

    def __init__(
        self, model: LoadedModel, deltas: Deltas, retain_weight: float, parts: int
    ) -> None:
        super().__init__()
        self.deltas = deltas
        self.retain_weight = retain_weight
        self.parts = parts
        self.seen = 0
        self.refuse: list[float] = []
        self.retain: list[float] = []
        self._base = (model,)  # in a tuple, so that no submodule is registered

    def forward(self, step: Step) -> dict[str, Tensor]:
        (model,) = self._base
        device = model.device
        batch = Batch(step.batch.input_ids.to(device), step.batch.real.to(device))
        at = torch.cat([step.refuse_at, step.retain_at]).to(device)
        logits = model.logits(model.hidden(batch)[at[:, 0], at[:, 1]])
        refuse, retain = logits[: len(step.refuse_at)], logits[len(step.refuse_at) :]
        if self.seen % self.parts == 0:
            self.refuse.append(0.0)
            self.retain.append(0.0)
        self.seen += 1
        if len(refuse):
            targets, weights = step.targets.to(device), step.refuse_weights.to(device)
            loss = refusal_loss(refuse, targets, weights)
            self.refuse[-1] += float(loss.detach())
        else:
            top_ids, top_log = step.top_ids.to(device), step.top_log.to(device)
            loss = retain_loss(retain, top_ids, top_log, step.retain_weights.to(device))
            self.retain[-1] += float(loss.detach())
            loss = self.retain_weight * loss
        if not bool(torch.isfinite(loss)):
            raise RunFailure("the training loss is not finite; lower --lr, or give --dtype float32")
        # The Trainer averages over the parts of a step; their sum is meant.
        return {"loss": self.parts * loss}


class _Reporter(TrainerCallback):
    def __init__(self, module: _Beside, on_step: Report | None) -> None:
        self.module, self.on_step = module, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % _RELEASE_STEPS == 0:
            release()
        if self.on_step is not None:
            latest = {"refuse": self.module.refuse[-1], "retain": self.module.retain[-1]}
            self.on_step(int(state.global_step), latest)


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _only(items: list[Step]) -> dict[str, Step]:
    return {"step": items[0]}


def _turn(order: Sequence[int], number: int, size: int) -> Sequence[int]:
    return order[number * size : (number + 1) * size]


def _shares(batch: int, corpora: int) -> list[int]:
    """`batch` dealt out to corpora as evenly as it goes."""
    return [batch // corpora + (n < batch % corpora) for n in range(corpora)]


def _order(size: int, needed: int, draw: torch.Generator) -> list[int]:
    order: list[int] = []
    while size and len(order) < needed:
        order += torch.randperm(size, generator=draw).tolist()
    return order[:needed]
