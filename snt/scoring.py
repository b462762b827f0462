"""From prompts to scores: batches through a backend, each layer's importances into accumulators."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from snt.anatomy import KINDS
from snt.backend import Batch, LayerActivations, LoadedModel
from snt.errors import RequestError, RunFailure
from snt.importance.by_name import Importances
from snt.scores import NeuronScores, Place, Scores


def group_by_length(prompts: Sequence[Sequence[int]], pad_id: int, size: int = 8) -> list[Batch]:
    """Right-padded batches of prompts of similar length, shortest first. Raises RequestError."""
    if not prompts:
        raise RequestError("there are no prompts to detect on; give a corpus with at least one")
    empty = next((i for i, tokens in enumerate(prompts) if not tokens), None)
    if empty is not None:
        raise RequestError(f"prompt {empty + 1} has no tokens; remove it from the corpus")
    ordered = sorted(prompts, key=len)
    batches = []
    for start in range(0, len(ordered), size):
        members = ordered[start : start + size]
        longest = len(members[-1])
        ids = torch.full((len(members), longest), pad_id)
        real = torch.zeros(len(members), longest, dtype=torch.bool)
        for row, tokens in enumerate(members):
            ids[row, : len(tokens)] = torch.tensor(list(tokens))
            real[row, : len(tokens)] = True
        batches.append(Batch(ids, real))
    return batches


def detect_scores(
    model: LoadedModel,
    batches: Sequence[Batch],
    kinds: Sequence[str] = KINDS,
    on_layer: Callable[[int], None] | None = None,
    importance: str = "exact",
) -> Detected:
    """Importances of all neurons of `kinds` over all batches.

    `importance` is one of `snt.importance.by_name.IMPORTANCES`. `on_layer` gets the number of
    prompts after each (batch, layer), for a progress bar. Raises RunFailure when an importance is
    not finite.
    """
    started = time.perf_counter()
    collector = _Collector(Importances(importance, tuple(kinds)), on_layer)
    model.observe(batches, collector)
    seconds = time.perf_counter() - started
    return Detected(Scores(collector.places), seconds - collector.seconds)


@dataclass(frozen=True)
class Detected:
    """Scores, and the seconds that the model's own forward passes took."""

    scores: Scores
    forward_seconds: float


@dataclass
class _Collector:
    """The visitor: merges the importances of every batch and layer."""

    importances: Importances
    on_layer: Callable[[int], None] | None
    seconds: float = 0.0
    places: dict[Place, NeuronScores] = field(default_factory=dict)

    def __call__(
        self, layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel
    ) -> None:
        started = time.perf_counter()
        for kind, importance in self.importances(layer, batch.real, activations, model).items():
            if not bool(torch.isfinite(importance).all()):
                raise RunFailure(
                    f"layer {layer}, {kind}: an importance is not finite; the layer overflows in "
                    "this precision. Use --dtype float32"
                )
            scores = NeuronScores.of(importance)
            held = self.places.get((layer, kind))
            self.places[layer, kind] = held.merge(scores) if held else scores
        if self.on_layer is not None:
            self.on_layer(len(batch.real))
        self.seconds += time.perf_counter() - started
