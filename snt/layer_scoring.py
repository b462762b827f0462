"""Scores from a backend that goes layer by layer: every layer is done before the next begins.

Nothing waits: importances of a batch go into the accumulators of its layer at once. A prompt that
overflows in a later layer must count in none, and a minimum cannot be taken back; so the layers
that counted it are measured again without it, in another pass. That takes memory for one batch in
one layer, and a second pass only where a prompt overflows, which in float32 none should.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snt.backend import Batch, LayerActivations, LoadedModel
from snt.errors import RunFailure
from snt.importance.by_name import Importances
from snt.scores import NeuronScores, Place, Scores
from snt.tally import Tally, check_dropped


class _Enough(Exception):  # noqa: N818
    """All layers are measured, and the rest of a pass would tell nothing new."""


@dataclass
class LayerCollector:
    """The visitor. A layer's scores are kept when all batches have passed it."""

    importances: Importances
    has_beginning: bool
    on_layer: Callable[[int], None] | None
    on_batch: Callable[[Tally], None] | None
    tally: Tally
    rows: int
    seconds: float = 0.0
    batches: int = 0
    layer: int | None = None
    number: int = 0
    places: dict[Place, NeuronScores] = field(default_factory=dict)
    current: dict[Place, NeuronScores] = field(default_factory=dict)
    beginning: dict[str, Tensor] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    lost: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.places = dict(self.tally.scores.places)
        self.done, self.lost = set(self.tally.layers), set(self.tally.dropped)

    def begin_pass(self, batches: int) -> None:
        """Before the first layer of every pass over that many batches."""
        self.batches, self.layer = batches, None

    def __call__(
        self, layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel
    ) -> None:
        started = time.perf_counter()
        if self.tally.batches:
            raise _Enough
        if layer != self.layer:
            self.layer, self.number = layer, 0
            self.current, self.beginning = {}, {}
            # Weights of a layer that is gone are of no use, and all together as large as the model.
            self.importances.forget()
        if layer in self.done:
            return
        if self.has_beginning and not self.beginning:
            self.beginning = self.importances.of_beginning(layer, batch, activations, model)
        else:
            self._measure(layer, batch, activations, model)
        self.seconds += time.perf_counter() - started

    def _measure(
        self, layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel
    ) -> None:
        found = self.importances(layer, batch, activations, model)
        for kind, before in self.beginning.items():
            found[kind] = torch.hypot(found[kind], before)
        finite = torch.stack([torch.isfinite(one).all(dim=1) for one in found.values()]).all(dim=0)
        overflowed = {(self.number, row) for row in (~finite).nonzero().flatten().tolist()}
        if overflowed - self.lost:
            self.lost |= overflowed
            # Earlier layers counted these prompts. What this one holds is of other batches.
            self.places.clear()
            self.done.clear()
            check_dropped(len(self.lost), self.rows, str(model.dtype).removeprefix("torch."))
        kept = [row for row in range(len(finite)) if (self.number, row) not in self.lost]
        if kept:
            for kind, importance in found.items():
                new = NeuronScores.of(importance if len(kept) == len(finite) else importance[kept])
                held = self.current.get((layer, kind))
                self.current[layer, kind] = new if held is None else held.merge(new)
        self.number += 1
        if self.on_layer is not None:
            self.on_layer(len(batch.real))
        if self.number == self.batches:
            self._finish(layer, model)

    def _finish(self, layer: int, model: LoadedModel) -> None:
        self.places.update(self.current)
        self.done.add(layer)
        self.current = {}
        complete = len(self.done) == model.anatomy.layers
        # One assignment: an interruption finds the state before this layer or after it.
        self.tally = Tally(
            Scores(dict(self.places)),
            self.batches if complete else 0,
            tuple(sorted(self.lost)),
            () if complete else tuple(sorted(self.done)),
        )
        if self.on_batch is not None:
            self.on_batch(self.tally)


def observe_layers(
    model: LoadedModel,
    batches: Sequence[Batch],
    collector: LayerCollector,
    beginning: Tensor | None = None,
) -> None:
    """Pass over the layers until all are measured on the same prompts.

    Raises TooManyDropped as `check_dropped` does, RunFailure for a backend that leaves layers out.
    """
    while not collector.tally.batches:
        dropped = len(collector.lost)
        collector.begin_pass(len(batches))
        try:
            model.observe(batches, collector, beginning)
        except _Enough:
            break
        # A pass that ends without all layers has found a prompt that overflows.
        if not collector.tally.batches and len(collector.lost) == dropped:
            raise RunFailure(
                f"the backend showed {len(collector.done)} of {model.anatomy.layers} layers with "
                f"all {len(batches)} batches; this is a fault of the backend"
            )
