"""Query and key neurons, estimated: the change to first order, on a few directions of the values.

To first order in the shift x, a row of attention changes by dP_ij = P_ij (x_ij − E_P[x_i]): no
exponential per neuron. x is a sum of lanes ρ_i(n)·c_j(n), so the change through values M is
Σ_l ρ_l ∘ (P (c_l ∘ M)) less its centre: plain products for all neurons at once. Of M, each prompt
takes a few directions L, and what they leave of the diagonal, κ (see `snt.importance.sketch`):
‖dP M‖² ≈ ‖dP L‖² + Σ_ij dP_ij² κ_j. No random numbers, and nothing from other prompts: the same
prompt gives the same estimate anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snt.backend import LayerActivations
from snt.importance.packing import packed
from snt.importance.projection import Rows
from snt.importance.query_key import key_removals, query_removals, side_by_side
from snt.importance.removals import Attention, Removals
from snt.importance.sketch import sketch

# Directions: as few as keep the order of neurons. Keys need more, since their heads add.
QUERY_RANK, KEY_RANK = 2, 4
# Most elements of a (units × heads × columns × directions × neurons) product, to stay in cache.
_BLOCK = 1 << 18
_ROWS = 24
# Up to so many tokens the attention of a whole batch is kept rather than computed again and again.
_SHORT = 128


def fast_query_importance(
    seen: LayerActivations, real: Tensor, grams: Tensor, attention: Attention | None = None
) -> Tensor:
    """Estimates of `query_importance` -> (B, H·D) float32.

    real: (B, T) bool. grams: from `head_grams`, with as many groups as key heads, or with one where
    a norm runs over all heads of a query. attention: from `group_attention`, to compute it once for
    queries and keys.
    """
    parts = query_removals(packed(seen, real), grams, by_group=True)
    return side_by_side((_norms(part, QUERY_RANK, attention) for part in parts), len(real))


def fast_key_importance(
    seen: LayerActivations, real: Tensor, grams: Tensor, attention: Attention | None = None
) -> Tensor:
    """Estimates of `key_importance` -> (B, G·D) float32. Arguments as for queries."""
    parts = key_removals(packed(seen, real), grams)
    return side_by_side((_norms(part, KEY_RANK, attention) for part in parts), len(real))


def group_attention(seen: LayerActivations, real: Tensor) -> Attention | None:
    """Attention of a whole batch by key head; None where it is too long to be kept."""
    if real.shape[1] > _SHORT:
        return None
    removals = next(query_removals(packed(seen, real), None, by_group=True))
    return None if removals.own is not None else Attention.of(removals, _all_rows(removals))


def _norms(removals: Removals, rank: int, attention: Attention | None) -> Tensor:
    return first_order_norms(removals, rank, None if removals.own else attention)


def first_order_norms(removals: Removals, rank: int, attention: Attention | None = None) -> Tensor:
    """Estimates of ‖(P' − P) M‖ for every neuron -> (U, N), or (U, m, N) of separate heads.

    removals: its mixing has Gram matrices F Fᵀ, (G, m·D, m·D), in place of the factors F.
    attention: of all its rows, where that is known.
    """
    units, heads, tokens, neurons = removals.shape
    if attention is None and tokens <= _SHORT:
        attention = Attention.of(removals, _all_rows(removals))
    mass = _mass(removals) if attention is None else attention.probabilities.sum(dim=2)
    directions, rest = sketch(removals, rank, mass)
    squared = rest.new_zeros(units, heads if removals.separate else 1, neurons)
    chunk = max(16, _BLOCK // (heads * min(tokens, _ROWS) * (1 + rank)))
    step = max(1, chunk // neurons)
    blocks = list(removals.row_blocks(_ROWS))
    for start in range(0, units, step):
        some = slice(start, start + step)
        for at in range(0, neurons, chunk):
            within = slice(at, at + chunk)
            lanes = list(_lanes(removals, some, within))
            first, second = _first(lanes), _second(lanes, removals.softcap is not None)
            for rows in blocks:
                here = _sides(removals, attention, rows, some)
                columns = slice(rows.first, rows.last)
                change, mean = _along(first, here, directions[some, :, columns], rows)
                beside = _beside(second, here, rest[some, :, columns], mean, rows)
                if not removals.separate:
                    change = change.sum(dim=1, keepdim=True)
                    beside = beside.sum(dim=1, keepdim=True)
                along = change.mul_(change).flatten(2, 3).sum(dim=2)
                squared[some, :, within] += along.add_(beside.clamp_min_(0.0))
    return squared.sqrt_() if removals.separate else squared[:, 0].sqrt_()


def _all_rows(removals: Removals) -> Rows:
    tokens = removals.query.shape[2]
    return Rows(0, tokens, 0, tokens)


def _mass(removals: Removals) -> Tensor:
    """The attention that each position gets over all rows, by head -> (U, m, T)."""
    units, heads, tokens, _ = removals.shape
    mass = removals.query.new_zeros(units, heads, tokens)
    for rows in removals.row_blocks(_ROWS):
        mass[..., rows.first : rows.last] += Attention.of(removals, rows).probabilities.sum(dim=2)
    return mass


@dataclass(frozen=True)
class _Lane:
    """One term of the shift: rows_i · columns_j · S_ij^power, on some heads.

    rows: (U, m or 1, T, N). columns: (U, T, N or 1). power: 0 or 1. heads: which of the m.
    """

    rows: Tensor
    columns: Tensor
    power: int
    heads: slice

    def of_rows(self, rows: Rows) -> Tensor:
        return self.rows[:, :, rows.low : rows.high]


def _lanes(removals: Removals, some: slice, within: slice) -> Iterator[_Lane]:
    """Those of the own heads first."""
    for rows, columns in zip(removals.on_rows, removals.on_columns, strict=True):
        yield _Lane(rows[some, ..., within], columns[some, ..., within], 0, removals.own_heads)
    if removals.row_gain is not None:
        gain = removals.row_gain[some, ..., within]
        by_head = gain if gain.dim() == 4 else gain.unsqueeze(1)
        yield _Lane(by_head, torch.ones_like(by_head[:, 0, :, :1]), 1, slice(None))
    if removals.column_gain is not None:
        gain = removals.column_gain[some, ..., within]
        yield _Lane(torch.ones_like(gain[..., :1]).unsqueeze(1), gain, 1, slice(None))


@dataclass(frozen=True)
class _Sides:
    """Left-hand sides made of the attention of a block of rows, (U, m, R, C) each."""

    attention: Attention
    softcap: float | None

    def of_kind(self, squared: bool, slopes: int, power: int) -> Tensor:
        """P or P², times the cap's slope^slopes, times S^power."""
        probabilities, logits = self.attention.probabilities, self.attention.logits
        weights = probabilities.square() if squared else probabilities
        if self.softcap is not None and slopes:
            slope = 1.0 - torch.tanh(logits / self.softcap).square_()
            weights = weights * slope**slopes
        return weights * logits**power if power else weights


def _sides(removals: Removals, whole: Attention | None, rows: Rows, some: slice) -> _Sides:
    if whole is None:
        return _Sides(Attention.of(removals, rows, some), removals.softcap)

    def cut(part: Tensor) -> Tensor:
        return part[some, :, rows.low : rows.high, rows.first : rows.last]

    here = Attention(cut(whole.logits), cut(whole.probabilities), cut(whole.visible))
    return _Sides(here, removals.softcap)


@dataclass(frozen=True)
class _Term:
    """times · rows of `lane` (· rows of `other`, or the mean shift) · Σ_j left_ij columns_j.

    columns: (U, T, N or 1). slopes, power: of the left-hand side. heads: on which of the m it acts.
    """

    columns: Tensor
    slopes: int
    power: int
    heads: slice
    lane: _Lane
    times: float = 1.0
    other: _Lane | None = None


@dataclass(frozen=True)
class _Products:
    """Terms that share a left-hand side, their columns side by side: (U, T, K, N or 1)."""

    terms: list[_Term]
    columns: Tensor

    def meet(self, left: Tensor, rows: Rows) -> Tensor:
        """(U, s, …, R, C) -> (U, s, …, R, K, N)."""
        right = self.columns[:, rows.first : rows.last].flatten(2)
        moved = torch.bmm(left.flatten(1, -2), right)
        return moved.view(*left.shape[:-1], *self.columns.shape[2:])


def _gathered(terms: Iterable[_Term]) -> list[_Products]:
    sides: dict[tuple[int, int, int | None], list[_Term]] = {}
    for term in terms:
        sides.setdefault((term.slopes, term.power, term.heads.start), []).append(term)

    def side_by_side(members: list[_Term]) -> Tensor:
        widest = max(term.columns.shape[2] for term in members)
        return torch.stack([term.columns.expand(-1, -1, widest) for term in members], dim=2)

    return [_Products(members, side_by_side(members)) for members in sides.values()]


def _first(lanes: list[_Lane]) -> list[_Products]:
    """What the shift consists of."""
    return _gathered(_Term(lane.columns, 1, lane.power, lane.heads, lane) for lane in lanes)


def _second(lanes: list[_Lane], capped: bool) -> list[_Products]:
    """What the square of the centred shift consists of, but for the square of its mean."""
    slopes = 1 if capped else 0
    terms = []
    for at, lane in enumerate(lanes):
        terms.append(_Term(lane.columns, slopes, lane.power, lane.heads, lane, -2.0))
        for other in lanes[: at + 1]:
            # Of two lanes the earlier one has the heads on which both act.
            times, power = 1.0 if other is lane else 2.0, lane.power + other.power
            both = lane.columns * other.columns
            terms.append(_Term(both, 2 * slopes, power, other.heads, lane, times, other))
    return _gathered(terms)


def _along(
    first: list[_Products], sides: _Sides, along: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """dP_h L_h of every head -> (U, m, r, R, N), and the mean shift E_P[x] -> (U, m, R, N)."""
    neurons = max(term.lane.rows.shape[-1] for products in first for term in products.terms)
    # Contiguous, so that left-hand sides are: products would copy others.
    with_one = torch.cat([torch.ones_like(along[..., :1].mT), along.mT], dim=2).unsqueeze(3)
    units, heads, lines, _, _ = with_one.shape
    total = along.new_zeros(units, heads, lines, rows.high - rows.low, neurons)
    for products in first:
        side = products.terms[0]
        weights = sides.of_kind(False, side.slopes, side.power)[:, side.heads]
        moved = products.meet(with_one[:, side.heads] * weights.unsqueeze(2), rows)
        for at, term in enumerate(products.terms):
            mine = term.lane.of_rows(rows).unsqueeze(2)
            total[:, side.heads].addcmul_(mine, moved[..., at, :])
    mean = total[:, :, 0]
    level = (sides.of_kind(False, 0, 0) @ along).mT.unsqueeze(-1)
    return total[:, :, 1:].addcmul_(mean.unsqueeze(2), level, value=-1.0), mean


def _beside(
    second: list[_Products], sides: _Sides, rest: Tensor, mean: Tensor, rows: Rows
) -> Tensor:
    """Σ_ij dP_ij² κ_j of every head -> (U, m, N)."""
    total = mean.square().mul_(sides.of_kind(True, 0, 0) @ rest.unsqueeze(-1))
    for products in second:
        side = products.terms[0]
        weights = sides.of_kind(True, side.slopes, side.power) * rest.unsqueeze(2)
        moved = products.meet(weights[:, side.heads], rows)
        for at, term in enumerate(products.terms):
            other = mean[:, side.heads] if term.other is None else term.other.of_rows(rows)
            both = term.lane.of_rows(rows) * other
            total[:, side.heads].addcmul_(both, moved[..., at, :], value=term.times)
    return total.sum(dim=2)
