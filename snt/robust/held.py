"""The model itself after the task, kept in memory while arms put their patches on it in turn."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from snt.opening import OpenModel
from snt.robust.task_training import FineTune, whole_model


@dataclass(frozen=True)
class FineTuned:
    """A model after the task with one seed. `weights`: its parameters then, in its own order."""

    opened: OpenModel
    model: nn.Module
    trained: FineTune
    seed: int
    weights: tuple[Tensor, ...]


class Held:
    """At most one such model, and a copy of its weights in the memory of the processor."""

    def __init__(self) -> None:
        self._found: FineTuned | None = None

    def keep(self, opened: OpenModel, trained: FineTune, seed: int) -> None:
        """Keep a model that is in float32 now, whatever is done to it next."""
        model = whole_model(opened.model, opened.backend)
        weights = tuple(one.detach().to("cpu", copy=True) for one in model.parameters())
        self._found = FineTuned(opened, model, trained, seed, weights)

    def restored(self, seed: int) -> tuple[OpenModel, FineTune] | None:
        """The model of this seed with the weights that it was kept with; None lets go of any."""
        found = self._found
        if found is None or found.seed != seed:
            self.drop()
            return None
        for parameter, weight in zip(found.model.parameters(), found.weights, strict=True):
            parameter.data = weight.to(parameter.device, copy=True)
        return found.opened, found.trained

    def drop(self) -> None:
        """Let go of it, so that another model has its memory."""
        self._found = None
