"""From prompts to scores: batches through a backend, each layer's importances into accumulators."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from snt.anatomy import KINDS
from snt.backend import Batch, LayerActivations, LoadedModel
from snt.beginnings import WORTH, alike, worth
from snt.errors import RequestError, RunFailure
from snt.halving import in_parts, more_parts, ran
from snt.importance.by_name import ADDING, Importances
from snt.importance.positions import Positions
from snt.layer_scoring import LayerCollector, observe_layers
from snt.objective import right_padded
from snt.scores import NeuronScores, Place, Scores
from snt.tally import Tally, check_dropped

# A batch is as large as this allows: prompts, and tokens with their padding.
BATCH_PROMPTS = 8
BATCH_TOKENS = 4096
EVERY_POSITION = Positions()


def length_groups(
    prompts: Sequence[Sequence[int]], size: int = BATCH_PROMPTS, tokens: int = BATCH_TOKENS
) -> list[list[int]]:
    """Which prompts (by index) go together: of similar length, shortest first.

    At most `size` prompts and `tokens` tokens, padding included, in a group; a longer prompt goes
    alone. Raises RequestError for no prompts and for one without tokens.
    """
    if not prompts:
        raise RequestError("there are no prompts to detect on; give a corpus with at least one")
    empty = next((i for i, ids in enumerate(prompts) if not ids), None)
    if empty is not None:
        raise RequestError(f"prompt {empty + 1} has no tokens; remove it from the corpus")
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        full = not groups or len(groups[-1]) >= size
        if full or (len(groups[-1]) + 1) * len(prompts[index]) > tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def group_by_length(
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    size: int = BATCH_PROMPTS,
    tokens: int = BATCH_TOKENS,
) -> list[Batch]:
    """The right-padded batches of `length_groups`. Raises RequestError as it does."""
    groups = length_groups(prompts, size, tokens)
    return [right_padded([prompts[index] for index in group], pad_id) for group in groups]


def common_beginning(
    batches: Sequence[Batch], importance: str = "exact", positions: Positions = EVERY_POSITION
) -> Tensor | None:
    """The token ids (L,) that all prompts begin with, where measuring them once saves work.

    A chat template opens every prompt alike, and what causal attention does there depends on
    nothing else. Every prompt keeps a token of its own, and all that count of `positions`.
    """
    if importance not in ADDING or sum(len(batch.real) for batch in batches) < 2:
        return None
    if not all(bool(batch.real[:, 0].all()) for batch in batches):
        return None
    first = batches[0].input_ids[0]
    length = len(first)
    for batch in batches:
        length = min(length, int(batch.real.sum(dim=1).min()) - (positions.last or 1))
        if length < WORTH:
            return None
        length = alike(torch.cat([first[None, :length], batch.input_ids[:, :length]]))
    return first[:length] if worth(length) else None


def _after(beginning: Tensor | None, batches: Sequence[Batch]) -> Sequence[Batch]:
    if beginning is None:
        return batches
    length = len(beginning)
    return [Batch(batch.input_ids[:, length:], batch.real[:, length:]) for batch in batches]


@dataclass(frozen=True)
class Detected:
    """Scores, the seconds that the model's own forward passes took, and dropped (batch, row)s."""

    scores: Scores
    forward_seconds: float
    dropped: tuple[tuple[int, int], ...] = ()


def detect_scores(
    model: LoadedModel,
    batches: Sequence[Batch],
    kinds: Sequence[str] = KINDS,
    on_layer: Callable[[int], None] | None = None,
    *,
    begin: Tally | None = None,
    on_batch: Callable[[Tally], None] | None = None,
    rows: int | None = None,
    importance: str = "exact",
    positions: Positions = EVERY_POSITION,
    beginning: Tensor | None = None,
    say: Callable[[str], None] | None = None,
) -> Detected:
    """Importances of all neurons of `kinds` over all batches.

    `importance` is one of `snt.importance.by_name.IMPORTANCES`, over the `positions` that count.
    `beginning`, from `common_beginning`, is what all prompts begin with, and is measured once.
    A prompt with an importance that is not finite in any layer counts in none; of a backend that
    goes layer by layer (`layer_by_layer`) see `snt.layer_scoring`. `begin` is what an
    earlier run got from the first of these batches. `on_layer` gets the number of prompts after
    each (batch, layer), for a progress bar; `on_batch` what has been found so far. Where the memory
    does not hold a batch it goes in halves, and all later ones with it, which is told to `say`;
    scores then agree up to rounding. Raises
    TooManyDropped when more than 1% of `rows` prompts (default: those of the batches) are dropped.
    """
    begin = begin or Tally()
    started = time.perf_counter()
    measured = Importances(importance, tuple(kinds), positions)
    rows = sum(len(batch.real) for batch in batches) if rows is None else rows
    words = (measured, beginning is not None, on_layer, on_batch, begin, rows)
    rest = batches[begin.batches :]
    collector: LayerCollector | _Collector
    if getattr(model, "layer_by_layer", False):
        collector = LayerCollector(*words)
        if rest:
            observe_layers(model, _after(beginning, rest), collector, beginning)
    else:
        collector = _Collector(*words)
        _observe(model, rest, collector, beginning, say)
    seconds = time.perf_counter() - started
    tally = collector.tally
    if tally.batches != len(batches):
        raise RunFailure(
            f"the backend showed every layer of {tally.batches} of {len(batches)} batches; this is "
            "a fault of the backend"
        )
    return Detected(tally.scores, seconds - collector.seconds, tally.dropped)


def _observe(
    model: LoadedModel,
    batches: Sequence[Batch],
    collector: _Collector,
    beginning: Tensor | None,
    say: Callable[[str], None] | None,
) -> None:
    """Show all batches; where the memory does not hold one, from it on in halves."""
    parts, rest, before = 1, batches, collector.tally.batches
    while rest:
        divided = [in_parts(batch, parts) for batch in _after(beginning, rest)]
        collector.start(list(map(len, divided)))
        pieces = [piece for batch in divided for piece in batch]
        if ran(partial(model.observe, pieces, collector, beginning)):
            break
        rest = batches[collector.tally.batches - before :]
        parts = more_parts(parts, rest, say)


@dataclass
class _Collector:
    """The visitor: merges the importances of every batch and layer.

    A batch waits until all its layers are seen, for an overflow may first show in the last.
    """

    importances: Importances
    has_beginning: bool
    on_layer: Callable[[int], None] | None
    on_batch: Callable[[Tally], None] | None
    tally: Tally
    rows: int
    seconds: float = 0.0
    seen: Counter[int] = field(default_factory=Counter)
    waiting: dict[int, dict[Place, list[Tensor]]] = field(default_factory=dict)
    beginning: dict[Place, Tensor] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def start(self, parts: Sequence[int]) -> None:
        """What is shown next: as many parts of each batch after those of the tally."""
        first = self.tally.batches
        self.numbers = [first + at for at, count in enumerate(parts) for _ in range(count)]
        self.seen.clear()
        self.waiting.clear()
        self.beginning.clear()

    def __call__(
        self, layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel
    ) -> None:
        started = time.perf_counter()
        if self.has_beginning and (layer, self.importances.kinds[0]) not in self.beginning:
            found = self.importances.of_beginning(layer, batch, activations, model)
            self.beginning |= {(layer, kind): importance for kind, importance in found.items()}
            self.seconds += time.perf_counter() - started
            return
        # Each layer sees the batches in their order, so counting tells which one this is.
        number = self.numbers[self.seen[layer]]
        self.seen[layer] += 1
        held = self.waiting.setdefault(number, {})
        found = self.importances(layer, batch, activations, model)
        for kind, importance in found.items():
            before = self.beginning.get((layer, kind))
            whole = importance if before is None else torch.hypot(importance, before)
            held.setdefault((layer, kind), []).append(whole)
        if self.on_layer is not None:
            self.on_layer(len(batch.real))
        places = model.anatomy.layers * len(self.importances.kinds)
        if sum(map(len, held.values())) == places * self.numbers.count(number):
            self._commit(number, model)
        self.seconds += time.perf_counter() - started

    def _commit(self, number: int, model: LoadedModel) -> None:
        held = {place: torch.cat(found) for place, found in self.waiting.pop(number).items()}
        finite = torch.stack([torch.isfinite(one).all(dim=1) for one in held.values()]).all(dim=0)
        lost = tuple((number, row) for row in (~finite).nonzero().flatten().tolist())
        kept = held if not lost else {place: one[finite] for place, one in held.items()}
        new = {place: NeuronScores.of(one) for place, one in kept.items() if len(one)}
        # One assignment: an interruption finds the state before this batch or after it.
        self.tally = Tally(
            self.tally.scores.merge(Scores(new)), number + 1, self.tally.dropped + lost
        )
        check_dropped(len(self.tally.dropped), self.rows, str(model.dtype).removeprefix("torch."))
        if self.on_batch is not None:
            self.on_batch(self.tally)
