"""Rehearsal: protected neurons learn nothing of a task, and are kept refusing while it is learnt.

Protection keeps weights, not behaviour: a fine-tune of all other weights changes what reaches the
safety neurons and what is made of them. Between its steps those neurons, and nothing else, take
steps of SN-Tune, so that they follow. The term is that of continual learning (rehearsal of earlier
examples; Robins, Connection Science 1995); that it is confined to a mask is this project's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from snt import corpora
from snt.backend_plugins import get_backend
from snt.chat import Chat
from snt.deltas import Deltas
from snt.errors import RequestError
from snt.masks import NeuronMask, load_mask
from snt.progress import Progress
from snt.protection import Protection, plain_model
from snt.rehearsal_steps import EVERY, RATE, Material, Tuner, check_pace, material_of
from snt.training_plan import Schedule
from snt.tuning import RETAIN


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
    progress: Progress | None = None,
) -> Rehearsal:
    """Protect the neurons of `mask` as `protect` does, and tune them on in the model's fine-tune.

    After every `every` steps of the fine-tune they take one of SN-Tune: pairs of `data`, and of
    `retain` what the model answers when it begins. Give the result to a Trainer's callbacks, or
    train within it: there steps of the first optimizer that holds weights of the model count.
    `system` None is the system message of the data. Raises as `protect` does, RequestError for a
    model with adapters, which alone would be saved, on several devices or in several processes, and
    what loading the corpora raises.
    """
    _check_whole(model)
    check_pace(every, learning_rate)
    held = mask if isinstance(mask, NeuronMask) else load_mask(Path(mask))
    pairs = corpora.load_pairs(data, offline=offline)
    kept = [corpora.load(name, offline=offline) for name in retain]
    schedule = Schedule(learning_rate=learning_rate, seed=seed)

    def prepare() -> Material:
        _check_whole(model)
        full: Any = get_backend("full")
        loaded = full.around(plain_model(model), tokenizer)
        chat = Chat(tokenizer, loaded.context, pairs.system if system is None else system)
        return material_of(loaded, chat, pairs.pairs, kept, schedule, every, progress=progress)

    return Rehearsal(model, held, prepare)


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
        self._tuner: Tuner | None = None
        self._counted: torch.optim.Optimizer | None = None
        self._seen = 0
        self._half = False
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that goes on from a checkpoint goes on with what was rehearsed before it."""
        if state.global_step > 0:
            self._take_over()
        self._seen, self._half = state.global_step, args.bf16
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the fine-tune is done."""
        self._count()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The best checkpoint, where the Trainer has loaded it, has what was rehearsed by then."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self._take_over()
        super().on_train_end(args, state, control, **kwargs)

    def step(self) -> None:
        """One step of SN-Tune on the protected neurons. Raises RunFailure for a loss not finite."""
        if self._tuner is None:
            raise RequestError("a rehearsal takes steps within a training; begin it first")
        self.losses.append(self._tuner.step(self._half))
        self._fold(self._tuner.deltas)

    def _begin(self) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        if several and distributed.get_world_size() > 1:
            raise RequestError("rehearsal is for one process; use snt.protect in several")
        super()._begin()
        try:
            if self._tuner is None:
                material = self._prepare()
                self._tuner = Tuner(material, self._slices, self._seen // material.every)
        except BaseException:
            self.close()  # nothing may go on zeroing gradients of a training that did not begin
            raise

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        super()._after_step(optimizer)
        if self._counted is None:
            trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
            if not any(id(parameter) in trained for parameter in self._model.parameters()):
                return  # another model's, or that of a rehearsal
            self._counted = optimizer
        if optimizer is self._counted:
            self._count()

    def _count(self) -> None:
        self._seen += 1
        if self._tuner is not None and self._seen % self._tuner.material.every == 0:
            self.step()

    def _take_over(self) -> None:
        """From here on what the weights are now is kept."""
        for part in self._weights:
            part.values.copy_(part.now())

    @torch.no_grad()
    def _fold(self, deltas: Deltas) -> None:
        """Put the deltas into the weights, leave in them what rounding did not take."""
        by_key = dict(zip(deltas.keys, deltas.values, strict=True))
        for part in self._weights:
            if part.bias:
                continue
            delta = by_key[part.key]
            before = part.values.to(delta, copy=True)
            part.values.copy_(before + delta)
            delta -= part.values.to(delta) - before
            part.restore()


def _check_whole(model: Any) -> None:
    """Raises RequestError for adapters, whoever added them, and for weights on several devices."""
    peft: Any = sys.modules.get("peft")
    if peft is not None:  # nothing that is not imported can have been added
        from peft.tuners.tuners_utils import BaseTunerLayer

        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise RequestError(
                "a model with adapters saves those alone, and what is rehearsed changes the base "
                "model; fine-tune the whole model, or use snt.protect"
            )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise RequestError(
            f"the weights are on {', '.join(devices)}; rehearsal is for a model on one device: "
            "load it without device_map, or use snt.protect"
        )
