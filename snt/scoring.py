"""From prompts to scores: batches through a backend, each layer's importances into accumulators."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snt.anatomy import KINDS
from snt.backend import Batch, LayerActivations, LoadedModel
from snt.errors import RequestError, RunFailure
from snt.importance.ffn import column_norms, ffn_importance
from snt.importance.query_key import head_factors, key_importance, query_importance
from snt.importance.value import value_gram, value_importance
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
) -> Detected:
    """Exact importances of all neurons of `kinds` over all batches.

    `on_layer` gets the number of prompts after each (batch, layer), for a progress bar. Raises
    RunFailure when an importance is not finite.
    """
    started = time.perf_counter()
    collector = _Collector(tuple(kinds), on_layer)
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
    """The visitor: keeps what depends on weights alone per layer, merges everything else."""

    kinds: tuple[str, ...]
    on_layer: Callable[[int], None] | None
    seconds: float = 0.0
    places: dict[Place, NeuronScores] = field(default_factory=dict)
    weights: dict[int, _WeightTerms] = field(default_factory=dict)

    def __call__(
        self, layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel
    ) -> None:
        started = time.perf_counter()
        for kind, importance in self._importances(layer, batch, activations, model).items():
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

    def _importances(
        self, layer: int, batch: Batch, seen: LayerActivations, model: LoadedModel
    ) -> dict[str, Tensor]:
        if layer not in self.weights:
            self.weights[layer] = _weight_terms(layer, model)
        terms, real = self.weights[layer], batch.real
        maths: dict[str, Callable[[], Tensor]] = {
            "ffn": lambda: ffn_importance(seen.middle, terms.down_norms, real),
            "q": lambda: query_importance(seen, real, terms.query_factors),
            "k": lambda: key_importance(seen, real, terms.key_factors),
            "v": lambda: value_importance(seen.attended, terms.value_gram, real),
        }
        return {kind: maths[kind]() for kind in self.kinds}


@dataclass(frozen=True)
class _WeightTerms:
    """What the importances of one layer take from its weights alone."""

    down_norms: Tensor
    value_gram: Tensor
    query_factors: Tensor
    key_factors: Tensor


def _weight_terms(layer: int, model: LoadedModel) -> _WeightTerms:
    anatomy, family = model.anatomy, model.anatomy.family
    output = model.weight(layer, family.output)
    # A norm over all heads lets every head change, so that their cross terms count.
    coupled = family.norm == "all"
    return _WeightTerms(
        column_norms(model.weight(layer, family.down)),
        value_gram(output, anatomy.kv_heads, anatomy.head_dim),
        head_factors(output, 1 if coupled else anatomy.heads),
        head_factors(output, 1 if coupled else anatomy.kv_heads),
    )
