"""Rehearsal: protected neurons learn nothing of a task, and are kept refusing while it is learnt.

Protection keeps weights, not behaviour: a fine-tune of all other weights changes what reaches the
safety neurons and what is made of them. Between its steps those neurons, and nothing else, take
steps of SN-Tune, so that they follow. The term is that of continual learning (rehearsal of earlier
examples; Robins, Connection Science 1995); that it is confined to a mask is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from snt.deltas import Deltas, SliceKey
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
    `retain` what the model answers when it begins. Give the result to a Trainer's callbacks, or
    train within it. `system` None is the system message of the data. Raises as `protect` does,
    RequestError for a model under PEFT, whose adapters alone are saved, and what loading the
    corpora raises.
    """
    _check_whole(model)
    _check_every(every)
    held = mask if isinstance(mask, NeuronMask) else load_mask(Path(mask))
    pairs = corpora.load_pairs(data, offline=offline)
    kept = [corpora.load(name, offline=offline) for name in retain]
    schedule = Schedule(learning_rate=learning_rate, seed=seed)

    def prepare() -> Material:
        full: Any = get_backend("full")
        loaded = full.around(plain_model(model), tokenizer)
        chat = Chat(tokenizer, loaded.context, pairs.system if system is None else system)
        return material_of(loaded, chat, pairs.pairs, kept, schedule, every)

    return Rehearsal(model, held, prepare)


@dataclass(frozen=True)
class Material:
    """What is rehearsed: pairs to refuse, answers to keep, how often, and in which model.

    `schedule` gives the batches, the weights, the learning rate, which stays, and the seed.
    """

    loaded: LoadedModel
    pairs: Sequence[Pair]
    kept: Sequence[Sequence[Kept]]
    schedule: Schedule
    pad_id: int
    every: int

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
    _check_every(every)
    with _evaluating(loaded):
        targets = kept_corpora(loaded, chat, kept, positions, progress or Silence())
    examples = [Pair(*chat.pair_ids(*pair)) for pair in pairs]
    return Material(loaded, examples, targets, schedule, chat.pad_id, every)


class Rehearsal(Protection):
    """Protection whose kept values move: by steps of SN-Tune, and by nothing else.

    A step goes into the weights as far as their precision takes it; what rounding leaves stays in
    float32 beside them, for the next step. `losses`: of the refusals of every step, in nats.
    """

    def __init__(self, model: Any, mask: NeuronMask, prepare: Callable[[], Material]) -> None:
        """Raises as `rehearse` does. `prepare` is called when the training begins.

        Not before: by then the model is on the device that it is trained on.
        """
        super().__init__(model, mask)
        if {part.key for part in self._weights} != self._slices.keys():
            raise RequestError(
                "quantised weights cannot be rehearsed: they are whole numbers; fine-tune the "
                "model in float32 or bfloat16, or use snt.protect"
            )
        self._prepare = prepare
        self._steps: _Steps | None = None
        self._seen = 0
        self._half = False
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that goes on from a checkpoint goes on with what was rehearsed before it."""
        if args.world_size > 1:
            raise RequestError("rehearsal is for one process; use snt.protect in several")
        _check_whole(kwargs.get("model"))
        if state.global_step > 0:
            for part in self._weights:
                part.values.copy_(part.now())
        super().on_train_begin(args, state, control, **kwargs)
        self._seen, self._half = state.global_step, args.bf16

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the fine-tune is done."""
        self._count()

    def step(self) -> None:
        """One step of SN-Tune on the protected neurons. Raises RunFailure for a loss not finite."""
        if self._steps is None:
            raise RequestError("a rehearsal takes steps within a training; begin it first")
        self.losses.append(self._steps.take(self._half))
        self._fold(self._steps.deltas)

    def _begin(self) -> None:
        super()._begin()
        if self._steps is None:
            self._steps = _Steps(self._prepare(), self._slices)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self._steps is not None and optimizer is not self._steps.optimizer:
            super()._stepped(optimizer)
            self._count()

    def _count(self) -> None:
        self._seen += 1
        if self._steps is not None and self._seen % self._steps.material.every == 0:
            self.step()

    @torch.no_grad()
    def _fold(self, deltas: Deltas) -> None:
        """Put the deltas into the weights, leave in them what rounding did not take."""
        by_key = dict(zip(deltas.keys, deltas.values, strict=True))
        for part in self._weights:
            if part.bias:
                continue
            delta = by_key[part.key]
            before = part.now().float()
            part.write(before + delta)
            delta -= part.now().float() - before
        # Where rows of a weight cross columns of it, both hold the entry.
        for part in self._weights:
            part.values.copy_(part.now())


class _Steps:
    """Steps of SN-Tune on deltas of slices beside a model that something else trains."""

    def __init__(self, material: Material, slices: Mapping[SliceKey, Tensor]) -> None:
        self.material = material
        self.deltas = Deltas.zeros(slices, material.loaded)
        rate = material.schedule.learning_rate
        self.optimizer = torch.optim.AdamW(self.deltas.parameters(), lr=rate, weight_decay=0.0)
        self._plan = material.pass_number(0)
        self._taken = 0

    def take(self, half: bool) -> float:
        """Change the deltas by one step; `half` makes products in bfloat16. The loss in nats."""
        number = self._taken % self._plan.steps
        if self._taken and number == 0:
            self._plan = self.material.pass_number(self._taken // self._plan.steps)
        self._taken += 1
        loss = self._gradients(number, half)
        torch.nn.utils.clip_grad_norm_(self.deltas.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, number: int, half: bool) -> float:
        plan, loaded, refused = self._plan, self.material.loaded, 0.0
        values = list(self.deltas.values)
        with (
            _evaluating(loaded),
            loaded.training(),
            self.deltas.attached(loaded),
            torch.autocast(loaded.device.type, torch.bfloat16, enabled=half),
            torch.enable_grad(),
        ):
            for part in range(plan.parts):
                step = plan[number * plan.parts + part]
                loss = step_loss(loaded, step)
                if not bool(torch.isfinite(loss)):
                    raise RunFailure("the loss of the rehearsal is not finite; lower its rate")
                refused += float(loss.detach()) if step.part == "refuse" else 0.0
                # Of these alone: the weights may want gradients too, and have their own steps.
                made = torch.autograd.grad(plan.schedule.weights[step.part] * loss, values)
                for value, gradient in zip(values, made, strict=True):
                    value.grad = gradient if value.grad is None else value.grad + gradient
        return refused


@contextmanager
def _evaluating(loaded: LoadedModel) -> Iterator[None]:
    """Without dropout, and as it was afterwards."""
    model: Any = getattr(loaded, "model", None)
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check_every(every: int) -> None:
    if every < 1:
        raise RequestError(f"a rehearsal after every {every} steps; give at least 1")


def _check_whole(model: Any) -> None:
    if callable(getattr(model, "get_base_model", None)):
        raise RequestError(
            "a PEFT model saves its adapter, and what is rehearsed changes the base model; "
            "fine-tune the whole model, or use snt.protect"
        )
