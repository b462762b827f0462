"""Query and key neurons, estimated: the change to first order, on a few directions of the values.

To first order a change of attention needs no exponential per neuron (see
`snt.importance.first_order`). Of the values through the output projection, M, each prompt takes a
few directions L, and what they leave of the diagonal, κ (see `snt.importance.sketch`):
‖dP M‖² ≈ ‖dP L‖² + Σ_ij dP_ij² κ_j. First order fails where shifts are large, so the neurons that
shift most take the changed attention itself. There are no random numbers: the same batches give the
same estimates to the bit. The rows that a batch shares have directions of their own, so that in
another batch, with another beginning in common, an estimate differs a little.
"""

from __future__ import annotations

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
from snt.importance.query_key import key_removals, norms_of_rows, query_removals
from snt.importance.removals import Attention, Removals
from snt.importance.sketch import sketch

# Directions: as few as keep the order of neurons. Keys need more, since their heads add.
QUERY_RANK, KEY_RANK = 1, 2
# Neurons of a kind, of a prompt, whose changed attention is computed after all.
_LARGE_SHARE = 0.08
# Most elements of a (units × heads × rows × directions × neurons) product, to stay in cache.
_BLOCK = 1 << 18
_ROWS = 64
# Up to so many tokens the attention of a whole batch is kept rather than computed again and again.
_SHORT = 128


def fast_query_importance(
    seen: LayerActivations,
    real: Tensor,
    grams: Tensor,
    shared: int = 0,
    attention: Attention | None = None,
) -> Tensor:
    """Estimates of `query_importance` -> (B, H·D) float32.

    real: (B, T) bool. grams: from `head_grams`, with as many groups as key heads, or with one where
    a norm runs over all heads of a query. shared: from `shared_beginning`. attention: from
    `group_attention`, to compute it once for queries and keys.
    """
    return norms_of_rows(
        lambda part: query_removals(part, grams, by_group=True),
        partial(first_order_norms, rank=QUERY_RANK, attention=attention),
        packed(seen, real),
        shared,
        partial(first_order_norms, rank=QUERY_RANK),
    )


def fast_key_importance(
    seen: LayerActivations,
    real: Tensor,
    grams: Tensor,
    shared: int = 0,
    attention: Attention | None = None,
) -> Tensor:
    """Estimates of `key_importance` -> (B, G·D) float32. Arguments as for queries."""
    return norms_of_rows(
        lambda part: key_removals(part, grams),
        partial(first_order_norms, rank=KEY_RANK, attention=attention),
        packed(seen, real),
        shared,
        partial(first_order_norms, rank=KEY_RANK),
    )


def group_attention(seen: LayerActivations, real: Tensor, shared: int = 0) -> Attention | None:
    """Attention of a whole batch by key head, from row `shared` on; None where it is too much.

    None too where a norm runs over all heads, for there units are not the key heads.
    """
    over_all = seen.gain_span == "all" and seen.query_gain is not None
    if real.shape[1] > _SHORT or over_all:
        return None
    removals = next(query_removals(packed(seen, real), None, by_group=True))
    tokens = removals.query.shape[2]
    return Attention.of(removals, Rows(shared, tokens, 0, tokens))


def first_order_norms(removals: Removals, rank: int, attention: Attention | None = None) -> Tensor:
    """Estimates of ‖(P' − P) M‖ for every neuron -> (U, N), or (U, m, N) of separate heads.

    removals: its mixing has Gram matrices F Fᵀ, (G, m·D, m·D), in place of the factors F.
    attention: of all its rows, where that is known.
    """
    units, heads, tokens, neurons = removals.shape
    if attention is None and tokens <= _SHORT:
        attention = Attention.of(removals, Rows(removals.first_row, tokens, 0, tokens))
    mass = _mass(removals) if attention is None else attention.probabilities.sum(dim=2)
    directions, rest = sketch(removals, rank, mass)
    squared = rest.new_zeros(units, heads if removals.separate else 1, neurons)
    blocks = list(removals.row_blocks(_ROWS))
    chunk = max(16, _BLOCK // (heads * min(tokens, _ROWS) * (1 + rank)))
    step = max(1, chunk // neurons)
    for start in range(0, units, step):
        some = slice(start, start + step)
        for at in range(0, neurons, chunk):
            within = slice(at, at + chunk)
            lanes = list(lanes_of(removals, some, within))
            first, second = first_terms(lanes), second_terms(lanes, removals.softcap is not None)
            for rows in blocks:
                here = Attention.block(removals, attention, rows, some)
                sides, columns = Sides(here, removals.softcap), slice(rows.first, rows.last)
                change, mean = along_directions(first, sides, directions[some, :, columns], rows)
                beside = beside_directions(second, sides, rest[some, :, columns], mean, rows)
                if not removals.separate:
                    change = change.sum(dim=1, keepdim=True)
                    beside = beside.sum(dim=1, keepdim=True)
                along = change.mul_(change).flatten(2, 3).sum(dim=2)
                squared[some, :, within] += along.add_(beside.clamp_min_(0.0))
    redo_large(removals, squared, directions, rest, attention, _LARGE_SHARE)
    return squared.sqrt_() if removals.separate else squared[:, 0].sqrt_()


def _mass(removals: Removals) -> Tensor:
    """The attention that each position gets over all rows, by head -> (U, m, T)."""
    units, heads, tokens, _ = removals.shape
    mass = removals.query.new_zeros(units, heads, tokens)
    for rows in removals.row_blocks(_ROWS):
        mass[..., rows.first : rows.last] += Attention.of(removals, rows).probabilities.sum(dim=2)
    return mass
