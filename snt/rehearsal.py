"""Rehearsal: protected neurons learn nothing of a task, and are kept refusing while it is learnt.

Protection keeps weights, not behaviour: a fine-tune of all other weights changes what reaches the
safety neurons and what is made of them. Between its steps those neurons, and nothing else, take
steps of SN-Tune, so that they follow. The term is that of continual learning (rehearsal of earlier
examples; Robins, Connection Science 1995); that it is confined to a mask is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt import corpora
from snt.backend import LoadedModel
from snt.backend_plugins import get_backend
from snt.chat import Chat
from snt.corpora import Corpus
from snt.deltas import Deltas, SliceKey, masked_slices
from snt.errors import RequestError, RunFailure
from snt.masks import NeuronMask, load_mask
from snt.objective import Kept, Pair
from snt.progress import Progress, Silence
from snt.protection import Protection, plain_model
from snt.retaining import kept_corpora
from snt.training import step_loss
from snt.training_plan import Plan, Schedule
from snt.tuning import POSITIONS, RETAIN

EVERY = 2
# Half of what a tuning begins with: about its mean, since that falls to zero along a line.
RATE = 1e-3


def rehearse(
    model: Any,
    tokenizer: Any,
    mask: NeuronMask | Path | str,
    *,
    data: str = "refusals/tune",
    retain: Sequence[str] = RETAIN,
    every: int = EVERY,
    learning_rate: float = RATE,
    system: str | None = None,
    seed: int = 0,
    offline: bool = False,
) -> Rehearsal:
    """Protect the neurons of `mask` as `protect` does, and tune them on in the model's fine-tune.

    After every `every` steps of the fine-tune they take one of SN-Tune: pairs of `data`, and of
    `retain` what the model answers now. Give the result to a Trainer's callbacks, or train within
    it. `system` None is the system message of the data. Raises as `protect` does, RequestError for
    a model under PEFT, whose adapters alone are saved, and what loading the corpora raises.
    """
    inner = plain_model(model)
    if callable(getattr(model, "get_base_model", None)):
        raise RequestError(
            "a PEFT model saves its adapter, and what is rehearsed changes the base model; "
            "fine-tune the whole model, or use snt.protect"
        )
    held = mask if isinstance(mask, NeuronMask) else load_mask(Path(mask))
    pairs = corpora.load_pairs(data, offline=offline)
    kept = [corpora.load(name, offline=offline) for name in retain]
    full: Any = get_backend("full")
    loaded = full.around(inner, tokenizer)
    chat = Chat(tokenizer, loaded.context, pairs.system if system is None else system)
    schedule = Schedule(epochs=1.0, learning_rate=learning_rate, seed=seed)
    material = material_of(loaded, chat, pairs.pairs, kept, schedule, every)
    return Rehearsal(model, held, loaded, material)


@dataclass(frozen=True)
class Material:
    """What is rehearsed: pairs to refuse, answers to keep, and how often.

    `schedule` gives the batches, the weights, the learning rate, which stays, and the seed.
    """

    pairs: Sequence[Pair]
    kept: Sequence[Sequence[Kept]]
    schedule: Schedule
    pad_id: int
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RequestError(f"a rehearsal after every {self.every} steps; give at least 1")

    def pass_number(self, number: int) -> Plan:
        """The steps of one pass over the pairs, in an order of its own."""
        schedule = replace(self.schedule, epochs=1.0, seed=self.schedule.seed + number)
        return Plan(self.pairs, self.kept, schedule, self.pad_id)


def material_of(
    loaded: LoadedModel,
    chat: Chat,
    pairs: Sequence[tuple[str, str]],
    kept: Sequence[Corpus],
    schedule: Schedule,
    every: int = EVERY,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> Material:
    """Material in the model's tokens; what it keeps is what the model answers now."""
    targets = kept_corpora(loaded, chat, kept, positions, progress or Silence())
    examples = [Pair(*chat.pair_ids(*pair)) for pair in pairs]
    return Material(examples, targets, schedule, chat.pad_id, every)


class Rehearsal(Protection):
    """Protection whose kept values move: by steps of SN-Tune, and by nothing else.

    A step goes into the weights as far as their precision takes it; what rounding leaves stays in
    float32 beside them, for the next step.
    """

    def __init__(
        self, model: Any, mask: NeuronMask, loaded: LoadedModel, material: Material
    ) -> None:
        """Raises as `rehearse` does. `loaded` is `model` as a backend holds it."""
        super().__init__(model, mask)
        slices = masked_slices(mask)
        if {part.key for part in self._weights} != slices.keys():
            raise RequestError(
                "quantised weights cannot be rehearsed: they are whole numbers; fine-tune the "
                "model in float32 or bfloat16, or use snt.protect"
            )
        self._loaded, self._material = loaded, material
        self._deltas = Deltas.zeros(slices, loaded)
        self._optimizer = torch.optim.AdamW(
            self._deltas.parameters(), lr=material.schedule.learning_rate, weight_decay=0.0
        )
        self._plan = material.pass_number(0)
        self._seen = 0
        self._half = False
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Products are made in the precision of the Trainer's."""
        super().on_train_begin(args, state, control, **kwargs)
        if getattr(args, "world_size", 1) > 1:
            raise RequestError("rehearsal is for one process; use snt.protect in several")
        self._half = bool(getattr(args, "bf16", False))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the fine-tune is done."""
        self._count()

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is not self._optimizer:
            super()._stepped(optimizer)
            self._count()

    def _count(self) -> None:
        self._seen += 1
        if self._seen % self._material.every == 0:
            self.step()

    def step(self) -> None:
        """One step of SN-Tune on the protected neurons. Raises RunFailure for a loss not finite."""
        number = len(self.losses)
        if number and number % self._plan.steps == 0:
            self._plan = self._material.pass_number(number // self._plan.steps)
        values = list(self._deltas.values)
        was_training = self._model.training
        self._model.eval()
        try:
            self.losses.append(self._gradients(number % self._plan.steps, values))
        finally:
            self._model.train(was_training)
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._fold()

    def _gradients(self, number: int, values: list[torch.nn.Parameter]) -> float:
        """Gradients of one step's loss in `values`, and that of its refusals in nats."""
        plan, refused = self._plan, 0.0
        device = self._loaded.device.type
        with (
            self._loaded.training(),
            self._deltas.attached(self._loaded),
            torch.autocast(device, torch.bfloat16, enabled=self._half),
            torch.enable_grad(),
        ):
            for part in range(plan.parts):
                step = plan[number * plan.parts + part]
                loss = step_loss(self._loaded, step)
                if not bool(torch.isfinite(loss)):
                    raise RunFailure("the loss of the rehearsal is not finite; lower its rate")
                refused += float(loss.detach()) if step.part == "refuse" else 0.0
                # Of these alone: the weights may want gradients too, and have their own steps.
                made = torch.autograd.grad(plan.schedule.weights[step.part] * loss, values)
                for value, gradient in zip(values, made, strict=True):
                    value.grad = gradient if value.grad is None else value.grad + gradient
        return refused

    @torch.no_grad()
    def _fold(self) -> None:
        """Put the deltas into the weights, leave in them what rounding did not take."""
        deltas: dict[SliceKey, Tensor] = dict(
            zip(self._deltas.keys, self._deltas.values, strict=True)
        )
        for part in self._weights:
            if part.bias:
                continue
            delta = deltas[part.key]
            before = part.now().float()
            part.write(before + delta)
            delta -= part.now().float() - before
        # Where rows of a weight cross columns of it, both hold the entry.
        for part in self._weights:
            part.values.copy_(part.now())
