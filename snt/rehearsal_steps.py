"""Steps of SN-Tune on slices beside a model that something else trains: what is rehearsed.

They are those of a tuning, at a rate that stays, without the plain texts that a tuning keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snt.backend import LoadedModel
from snt.chat import Chat
from snt.corpora import Corpus
from snt.deltas import Deltas, SliceKey
from snt.errors import RequestError, RunFailure
from snt.module_modes import modes_kept
from snt.objective import Kept, Pair
from snt.progress import Progress, Silence
from snt.retaining import kept_corpora
from snt.training import step_loss
from snt.training_plan import Plan, Schedule
from snt.tuning import POSITIONS

EVERY = 2
# Half of what a tuning begins with: about its mean, since that falls to zero along a line.
RATE = 1e-3


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
    check_pace(every, schedule.learning_rate)
    with _evaluating(loaded):
        targets = kept_corpora(loaded, chat, kept, positions, progress or Silence())
    examples = [Pair(*chat.pair_ids(*pair)) for pair in pairs]
    return Material(loaded, examples, targets, schedule, chat.pad_id, every)


class Tuner:
    """Steps of SN-Tune on deltas of slices beside a model that something else trains."""

    def __init__(
        self, material: Material, slices: Mapping[SliceKey, Tensor], taken: int = 0
    ) -> None:
        """`taken`: steps that an earlier run took, whose data do not come again yet."""
        self.material = material
        self.deltas = Deltas.zeros(slices, material.loaded)
        rate = material.schedule.learning_rate
        self.optimizer = torch.optim.AdamW(self.deltas.parameters(), lr=rate, weight_decay=0.0)
        self._plan = material.pass_number(0)
        self._pass, self._taken = 0, taken

    def step(self, half: bool) -> float:
        """Change the deltas by one step; `half` makes products in bfloat16. The loss in nats."""
        at, number = divmod(self._taken, self._plan.steps)
        if at != self._pass:
            self._pass, self._plan = at, self.material.pass_number(at)
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
                    raise RunFailure(
                        "the loss of the rehearsal is not finite; its learning rate of "
                        f"{plan.schedule.learning_rate:g} may be too high"
                    )
                refused += float(loss.detach()) if step.part == "refuse" else 0.0
                # Of these alone: the weights may want gradients too, and have their own steps.
                made = torch.autograd.grad(plan.schedule.weights[step.part] * loss, values)
                for value, gradient in zip(values, made, strict=True):
                    value.grad = gradient if value.grad is None else value.grad + gradient
        return refused


@contextmanager
def _evaluating(loaded: LoadedModel) -> Iterator[None]:
    """Without dropout; every module is as it was afterwards."""
    model: Any = getattr(loaded, "model", None)
    with modes_kept(model):
        model.eval()
        yield


def check_pace(every: int, learning_rate: float) -> None:
    """Raises RequestError for what no rehearsal can be made at."""
    if every < 1 or not learning_rate > 0:
        raise RequestError(
            f"a rehearsal after every {every} steps at a learning rate of {learning_rate:g}; give "
            "at least 1, and more than 0"
        )
