"""Query and key neurons, estimated: the change to first order, on a few directions of the values.

To first order a change of attention needs no exponential per neuron (see
`snt.importance.first_order`). Of the values through the output projection, M, each prompt takes a
few directions L, and what they leave of the diagonal, κ (see `snt.importance.sketch`):
‖dP M‖² ≈ ‖dP L‖² + Σ_ij dP_ij² κ_j. First order fails where shifts are large, so the neurons that
shift most take the changed attention itself. There are no random numbers: the same batches give the
same estimates to the bit. A beginning that all prompts share has directions of its own, so that
with another beginning in common an estimate differs a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from snt.backend import LayerActivations
from snt.importance.first_order import (
    Sides,
    along_directions,
    beside_directions,
    first_terms,
    lanes_of,
    second_terms,
)
from snt.importance.large_shifts import redo_large
from snt.importance.packing import packed
from snt.importance.projection import Rows
from snt.importance.query_key import attention_alone, key_removals, norms_of, query_removals
from snt.importance.removals import Attention, Removals
from snt.importance.sketch import Values, sketch

# Directions: as few as keep the order of neurons. Keys need more, since their heads add.
QUERY_RANK, KEY_RANK = 1, 3
# Neurons that may shift a logit by more nats have their changed attention computed after all.
_LARGE_SHIFT = 4.0
# Most elements of a (units × heads × rows × directions × neurons) product, to stay in cache.
_BLOCK = 1 << 18
_ROWS = 64
# Up to so many tokens the attention of a whole batch is kept rather than computed again and again.
_SHORT = 128


def fast_query_importance(
    seen: LayerActivations, real: Tensor, grams: Tensor, shared: GroupTerms | None = None
) -> Tensor:
    """Estimates of `query_importance` -> (B, H·D) float32.

    real: (B, R) bool. grams: from `head_grams`, with as many groups as key heads, or with one where
    a norm runs over all heads of a query. shared: what `group_terms` made for queries and keys of
    the same packed activations.
    """
    norms = partial(first_order_norms, rank=QUERY_RANK, shared=shared)
    return norms_of(query_removals(packed(seen, real), grams, by_group=True), norms, len(real))


def fast_key_importance(
    seen: LayerActivations, real: Tensor, grams: Tensor, shared: GroupTerms | None = None
) -> Tensor:
    """Estimates of `key_importance` -> (B, G·D) float32. Arguments as for queries."""
    norms = partial(first_order_norms, rank=KEY_RANK, shared=shared)
    return norms_of(key_removals(packed(seen, real), grams), norms, len(real))


@dataclass(frozen=True)
class GroupTerms:
    """What the estimates of queries and keys share, by key head.

    attention: of all rows, where that is not too much to keep.
    """

    attention: Attention | None
    values: Values

    @staticmethod
    def of(removals: Removals) -> GroupTerms:
        tokens = removals.shape[2]
        attention = None
        if tokens <= _SHORT:
            attention = Attention.of(removals, Rows(0, removals.rows, 0, tokens))
        mass = _mass(removals) if attention is None else attention.probabilities.sum(dim=2)
        return GroupTerms(attention, Values.of(removals, mass))


def group_terms(seen: LayerActivations, real: Tensor, grams: Tensor) -> GroupTerms | None:
    """What queries and keys share; None where a norm runs over all heads: units differ there."""
    normed = seen.query_gain is not None or seen.key_gain is not None
    if seen.gain_span == "all" and normed:
        return None
    return GroupTerms.of(attention_alone(packed(seen, real), grams))


def first_order_norms(removals: Removals, rank: int, shared: GroupTerms | None = None) -> Tensor:
    """Estimates of ‖(P' − P) M‖ for every neuron -> (U, N), or (U, m, N) of separate heads.

    removals: its mixing has Gram matrices F Fᵀ, (G, m·D, m·D), in place of the factors F.
    """
    units, heads, tokens, neurons = removals.shape
    shared = shared or GroupTerms.of(removals)
    directions, rest = sketch(shared.values, rank, removals.separate)
    squared = rest.new_zeros(units, heads if removals.separate else 1, neurons)
    blocks = list(removals.row_blocks(_ROWS))
    chunk = max(16, _BLOCK // (heads * min(removals.rows, _ROWS) * (1 + rank)))
    step = max(1, chunk // neurons)
    for start in range(0, units, step):
        some = slice(start, start + step)
        for at in range(0, neurons, chunk):
            within = slice(at, at + chunk)
            lanes = list(lanes_of(removals, some, within))
            first, second = first_terms(lanes), second_terms(lanes, removals.softcap is not None)
            for rows in blocks:
                here = Attention.block(removals, shared.attention, rows, some)
                sides, columns = Sides(here, removals.softcap), slice(rows.first, rows.last)
                change, mean = along_directions(first, sides, directions[some, :, columns], rows)
                beside = beside_directions(second, sides, rest[some, :, columns], mean, rows)
                if not removals.separate:
                    change = change.sum(dim=1, keepdim=True)
                    beside = beside.sum(dim=1, keepdim=True)
                along = change.mul_(change).flatten(2, 3).sum(dim=2)
                squared[some, :, within] += along.add_(beside.clamp_min_(0.0))
    redo_large(removals, squared, directions, rest, shared.attention, _LARGE_SHIFT)
    return squared.sqrt_() if removals.separate else squared[:, 0].sqrt_()


def _mass(removals: Removals) -> Tensor:
    """The attention that each position gets over all rows, by head -> (U, m, T)."""
    units, heads, tokens, _ = removals.shape
    mass = removals.query.new_zeros(units, heads, tokens)
    for rows in removals.row_blocks(_ROWS):
        mass[..., rows.first : rows.last] += Attention.of(removals, rows).probabilities.sum(dim=2)
    return mass
