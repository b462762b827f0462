"""Importances by name: which maths each kind of neuron takes, and what of it depends on weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from snt.backend import Batch, LayerActivations, LoadedModel
from snt.errors import RequestError
from snt.importance.fast import (
    GroupTerms,
    fast_key_importance,
    fast_query_importance,
    group_terms,
)
from snt.importance.ffn import column_norms, ffn_importance
from snt.importance.packing import packed
from snt.importance.paper import (
    paper_key_importance,
    paper_query_importance,
    paper_value_importance,
)
from snt.importance.positions import Positions
from snt.importance.query_key import head_factors, head_grams, key_importance, query_importance
from snt.importance.released_code import (
    released_ffn_score,
    released_key_score,
    released_query_score,
    released_value_score,
)
from snt.importance.value import value_gram, value_importance

IMPORTANCES = ("exact", "fast", "paper", "released-code")
# Those that are norms over positions: parts of a prompt add as squares.
ADDING = ("exact", "fast", "paper")


@dataclass
class Importances:
    """Importances of one name for some kinds; keeps per layer what depends on weights alone.

    `positions` count, the others do not. Raises RequestError for a name that has no choice.
    """

    name: str
    kinds: Sequence[str]
    positions: Positions = field(default_factory=Positions)
    _kept: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "released-code" and self.positions.last is not None:
            raise RequestError(
                "importance 'released-code' counts every position, as that code does; leave out "
                "--positions, or use another --importance"
            )

    def __call__(
        self, layer: int, batch: Batch, seen: LayerActivations, model: LoadedModel
    ) -> dict[str, Tensor]:
        """(B, neurons) float32 of every kind, for one batch in one layer.

        Raises RequestError where the name needs what this model's family does not have.
        """
        return self._measured(self.name, layer, batch, seen, model)

    def of_beginning(
        self, layer: int, batch: Batch, seen: LayerActivations, model: LoadedModel
    ) -> dict[str, Tensor]:
        """(1, neurons) of every kind, of the tokens that all prompts begin with.

        They add to every prompt's importance as squares of a norm do (`ADDING`). Measured once, so
        that an estimate would save nothing. Where only last positions count, there are none.
        """
        if self.positions.last is not None:
            sizes = {kind: model.anatomy.size(kind) for kind in self.kinds}
            return {kind: seen.key.new_zeros(1, size) for kind, size in sizes.items()}
        name = "exact" if self.name == "fast" else self.name
        return self._measured(name, layer, batch, seen, model)

    def forget(self) -> None:
        """Drop what is kept of the weights, where their layers will not come again."""
        self._kept.clear()

    def _measured(
        self, name: str, layer: int, batch: Batch, seen: LayerActivations, model: LoadedModel
    ) -> dict[str, Tensor]:
        of_kind = _OF_NAME[name]
        counted = self.positions.counted(batch.real)
        seen = self.positions.seen(seen, counted)
        weights = _Terms(layer, model, seen, self._kept, batch)
        return {kind: of_kind[kind](seen, counted, weights) for kind in self.kinds}


@dataclass
class _Terms:
    """What importances of one batch and layer share, each computed when first asked for.

    kept: of the weights, for the whole detection.
    """

    layer: int
    model: LoadedModel
    seen: LayerActivations
    kept: dict[tuple[int, str], Tensor]
    batch: Batch

    @cached_property
    def packed(self) -> LayerActivations:
        """Without padding and as it lies in memory best, once for queries and keys."""
        seen = packed(self.seen, self.batch.real)
        return replace(
            seen,
            query_raw=seen.query_raw.contiguous(),
            key_raw=seen.key_raw.contiguous(),
            query=seen.query.contiguous(),
            key=seen.key.contiguous(),
            value=seen.value.contiguous(),
        )

    @cached_property
    def filled(self) -> Tensor:
        """What is real of `packed`: all, for packed padding is seen by nothing."""
        return self.batch.real.new_ones(len(self.batch.real), self.packed.query.shape[2])

    @cached_property
    def group_terms(self) -> GroupTerms | None:
        """What estimates of queries and keys share."""
        return group_terms(self.packed, self.filled, self.grams(self.key_units))

    def _once(self, term: str, made: Callable[[], Tensor]) -> Tensor:
        if (self.layer, term) not in self.kept:
            self.kept[self.layer, term] = made()
        return self.kept[self.layer, term]

    def _output(self) -> Tensor:
        return self.model.weight(self.layer, self.model.anatomy.family.output)

    def _units(self, heads: int, gain: Tensor | None) -> int:
        """Groups of heads whose changes add: all together where a norm runs over all heads."""
        return 1 if gain is not None and self.seen.gain_span == "all" else heads

    @property
    def query_units(self) -> int:
        return self._units(self.model.anatomy.heads, self.seen.query_gain)

    @property
    def key_units(self) -> int:
        return self._units(self.model.anatomy.kv_heads, self.seen.key_gain)

    @property
    def grouped_units(self) -> int:
        """Query heads are estimated by group."""
        return self._units(self.model.anatomy.kv_heads, self.seen.query_gain)

    def down_norms(self) -> Tensor:
        down = self.model.anatomy.family.down
        return self._once("down", lambda: column_norms(self.model.weight(self.layer, down)))

    def value_gram(self) -> Tensor:
        anatomy = self.model.anatomy
        return self._once(
            "value", lambda: value_gram(self._output(), anatomy.kv_heads, anatomy.head_dim)
        )

    def factors(self, units: int) -> Tensor:
        return self._once(f"factors {units}", lambda: head_factors(self._output(), units))

    def grams(self, units: int) -> Tensor:
        return self._once(f"grams {units}", lambda: head_grams(self._output(), units))


_Maths = Callable[[LayerActivations, Tensor, _Terms], Tensor]


def _ffn(seen: LayerActivations, real: Tensor, weights: _Terms) -> Tensor:
    return ffn_importance(seen.middle, weights.down_norms(), real)


def _value(seen: LayerActivations, real: Tensor, weights: _Terms) -> Tensor:
    return value_importance(seen.attended, weights.value_gram(), real)


def _released_ffn(seen: LayerActivations, real: Tensor, weights: _Terms) -> Tensor:
    if seen.up is None:
        raise RequestError(
            "importance 'released-code' scores the output of an up projection, which model type "
            f"{weights.model.anatomy.model_type!r} does not show; use --kinds q,k,v or another "
            "--importance"
        )
    return released_ffn_score(seen.up, real)


_OF_NAME: dict[str, dict[str, _Maths]] = {
    "exact": {
        "ffn": _ffn,
        "q": lambda _seen, _real, w: query_importance(w.packed, w.filled, w.factors(w.query_units)),
        "k": lambda _seen, _real, w: key_importance(w.packed, w.filled, w.factors(w.key_units)),
        "v": _value,
    },
    "fast": {
        "ffn": _ffn,
        "q": lambda _seen, _real, w: fast_query_importance(
            w.packed, w.filled, w.grams(w.grouped_units), w.group_terms
        ),
        "k": lambda _seen, _real, w: fast_key_importance(
            w.packed, w.filled, w.grams(w.key_units), w.group_terms
        ),
        "v": _value,
    },
    "paper": {
        "ffn": _ffn,
        "q": lambda _seen, _real, w: paper_query_importance(w.packed, w.filled),
        "k": lambda _seen, _real, w: paper_key_importance(w.packed, w.filled),
        "v": lambda seen, real, _: paper_value_importance(seen.attended, seen.key.shape[1], real),
    },
    "released-code": {
        "ffn": _released_ffn,
        "q": lambda _seen, _real, w: released_query_score(w.packed, w.filled),
        "k": lambda _seen, _real, w: released_key_score(w.packed, w.filled),
        "v": lambda seen, real, _: released_value_score(seen.attended, seen.key.shape[1], real),
    },
}
