"""Query and key neurons, estimated: the change to first order, on a few directions of the values.

To first order in the shift x, a row of attention changes by dP_ij = P_ij (x_ij − E_P[x_i]): no
exponential per neuron. x is a sum of lanes ρ_i(n)·c_j(n), so the change through values M is
Σ_l ρ_l ∘ (P (c_l ∘ M)) less its centre: plain products for all neurons at once. Of M, each prompt
takes the first columns L of a pivoted Cholesky factor of its Gram matrix, and what is left of the
diagonal, κ: M Mᵀ ≈ L Lᵀ + diag(κ), so ‖dP M‖² ≈ ‖dP L‖² + Σ_ij dP_ij² κ_j. No random numbers, and
nothing from other prompts: the same prompt gives the same estimate anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snt.backend import LayerActivations
from snt.importance.packing import packed
from snt.importance.projection import Rows
from snt.importance.query_key import key_removals, query_removals, side_by_side
from snt.importance.removals import Removals, Seen

# Leading directions per prompt: as few as keep the order of neurons. Keys need more: heads add.
QUERY_RANK, KEY_RANK = 2, 4
# Most elements of a (units × heads × columns × directions × neurons) right-hand side.
_BLOCK = 1 << 20
_ROWS = 32
# Up to so many tokens the attention of a whole batch is kept rather than computed twice.
_SHORT = 128
# What is left of a diagonal may round to below zero, and no pivot is divided by it.
_TINY = 1e-30


def fast_query_importance(seen: LayerActivations, real: Tensor, grams: Tensor) -> Tensor:
    """Estimates of `query_importance` -> (B, H·D) float32.

    real: (B, T) bool. grams: from `head_grams`, with as many groups as exact needs factors.
    """
    parts = query_removals(packed(seen, real), grams)
    return side_by_side((first_order_norms(part, QUERY_RANK) for part in parts), len(real))


def fast_key_importance(seen: LayerActivations, real: Tensor, grams: Tensor) -> Tensor:
    """Estimates of `key_importance` -> (B, G·D) float32. Arguments as for queries."""
    parts = key_removals(packed(seen, real), grams)
    return side_by_side((first_order_norms(part, KEY_RANK) for part in parts), len(real))


def first_order_norms(removals: Removals, rank: int) -> Tensor:
    """Estimates of ‖(P' − P) M‖ for every neuron -> (U, N) float32.

    removals: its mixing has Gram matrices F Fᵀ, (G, m·D, m·D), in place of the factors F.
    """
    units, heads, tokens, neurons = removals.shape
    whole = _Weights.of(removals, _all_rows(removals)) if tokens <= _SHORT else None
    directions, rest = _sketch(removals, rank, whole)
    squared = removals.on_columns[0].new_zeros(units, neurons)
    chunk = max(16, _BLOCK // (heads * tokens * (1 + rank)))
    step = max(1, chunk // neurons)
    for start in range(0, units, step):
        some = slice(start, start + step)
        for at in range(0, neurons, chunk):
            within = slice(at, at + chunk)
            lanes = _lanes(removals, some, within)
            for rows in removals.row_blocks(_ROWS):
                attention = whole.part(rows, some) if whole else _Weights.of(removals, rows, some)
                columns = slice(rows.first, rows.last)
                change, mean = _along(lanes, attention, directions[some, :, columns], rows)
                beside = _beside(lanes, attention, rest[some, :, columns], mean, rows)
                squared[some, within] += change.square_().sum(dim=(1, 2)).add_(beside)
    return squared.sqrt_()


def _all_rows(removals: Removals) -> Rows:
    tokens = removals.query.shape[2]
    return Rows(0, tokens, 0, tokens)


@dataclass(frozen=True)
class _Lane:
    """One term of the shift: rows_i · columns_j · S_ij^power, on some heads.

    rows: (U, m or 1, T, N). columns: (U, T, N or 1). power: 0 or 1. heads: which of the m.
    """

    rows: Tensor
    columns: Tensor
    power: int
    heads: slice


def _lanes(removals: Removals, some: slice, within: slice) -> list[_Lane]:
    lanes = [
        _Lane(rows[some, ..., within], columns[some, ..., within], 0, removals.own_heads)
        for rows, columns in zip(removals.on_rows, removals.on_columns, strict=True)
    ]
    everyone = slice(None)
    if removals.row_gain is not None:
        gain = removals.row_gain[some, ..., within]
        lanes.append(_Lane(gain.unsqueeze(1), torch.ones_like(gain[..., :1]), 1, everyone))
    if removals.column_gain is not None:
        gain = removals.column_gain[some, ..., within]
        lanes.append(_Lane(torch.ones_like(gain[..., :1]).unsqueeze(1), gain, 1, everyone))
    return lanes


@dataclass(frozen=True)
class _Weights:
    """Attention of a block of rows, (U, m, R, C): probabilities, logits, and a cap's slope."""

    probabilities: Tensor
    logits: Tensor
    slope: Tensor | None

    @staticmethod
    def of(removals: Removals, rows: Rows, some: slice = slice(None)) -> _Weights:
        seen = Seen.of(removals, rows, some)
        slope = None
        if removals.softcap is not None and removals.shift_capped:
            slope = 1.0 - torch.tanh(seen.logits / removals.softcap).square_().mT
        return _Weights(seen.probabilities.mT, seen.logits.mT, slope)

    def part(self, rows: Rows, some: slice) -> _Weights:
        """Of the attention of all rows, a block."""

        def cut(whole: Tensor) -> Tensor:
            return whole[some, :, rows.low : rows.high, rows.first : rows.last]

        slope = None if self.slope is None else cut(self.slope)
        return _Weights(cut(self.probabilities), cut(self.logits), slope)

    def times(self, squared: bool, slopes: int, power: int) -> Tensor:
        """P or P², times slope^slopes times S^power."""
        weights = self.probabilities.square() if squared else self.probabilities
        if self.slope is not None and slopes:
            weights = weights * self.slope**slopes
        return weights * self.logits**power if power else weights


def _along(
    lanes: list[_Lane], attention: _Weights, along: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Σ_h dP_h L_h -> (U, R, r, N), and the mean shift E_P[x] -> (U, m, R, N)."""
    units, heads, columns, rank = along.shape
    with_one = torch.cat([torch.ones_like(along[..., :1]), along], dim=-1).unsqueeze(-1)
    height, neurons = rows.high - rows.low, max(lane.rows.shape[-1] for lane in lanes)
    total = along.new_zeros(units, heads, height, 1 + rank, neurons)
    for lane in lanes:
        weights = attention.times(False, 1, lane.power)[:, lane.heads]
        part = lane.columns[:, None, rows.first : rows.last, None]
        right = with_one[:, lane.heads] * part
        moved = (weights @ right.flatten(3)).view(*weights.shape[:3], *right.shape[3:])
        total[:, lane.heads].addcmul_(lane.rows[:, :, rows.low : rows.high].unsqueeze(3), moved)
    mean = total[:, :, :, 0]
    level = (attention.probabilities @ along).unsqueeze(-1)
    change = total[:, :, :, 1:].addcmul_(mean.unsqueeze(3), level, value=-1.0)
    return change.sum(dim=1), mean


def _beside(
    lanes: list[_Lane], attention: _Weights, rest: Tensor, mean: Tensor, rows: Rows
) -> Tensor:
    """Σ over heads, rows and columns of dP_ij² κ_j -> (U, N)."""
    total = mean.square() * (attention.times(True, 0, 0) @ rest.unsqueeze(-1))

    def spread(right: Tensor, slopes: int, power: int, heads: slice) -> Tensor:
        weights = attention.times(True, slopes, power)[:, heads]
        return weights @ (rest[:, heads].unsqueeze(-1) * right.unsqueeze(1))

    # The lanes of some heads come before those of all: of two lanes the earlier one has the heads.
    for at, lane in enumerate(lanes):
        columns = lane.columns[:, rows.first : rows.last]
        linear = spread(columns, 1, lane.power, lane.heads) * mean[:, lane.heads]
        _add(total, lane, lane, linear.mul_(-2.0), rows, once=True)
        for other in lanes[: at + 1]:
            right = columns * other.columns[:, rows.first : rows.last]
            square = spread(right, 2, lane.power + other.power, other.heads)
            _add(total, lane, other, square.mul_(1.0 if other is lane else 2.0), rows)
    return total.sum(dim=(1, 2)).clamp_min_(0.0)


def _add(
    total: Tensor, lane: _Lane, other: _Lane, part: Tensor, rows: Rows, once: bool = False
) -> None:
    """Add part · lane's rows (· other's rows) on the heads of `other`."""
    mine = lane.rows[:, :, rows.low : rows.high]
    if not once:
        part = part * other.rows[:, :, rows.low : rows.high]
    total[:, other.heads].addcmul_(mine, part)


def _sketch(removals: Removals, rank: int, whole: _Weights | None) -> tuple[Tensor, Tensor]:
    """Directions L (U, m, T, r) of the values, and what they leave of the diagonal, κ (U, m, T).

    Rows of M are (head, position) pairs; the next pivot is the pair with the largest remainder,
    weighed by the attention that its position gets. What all positions share is taken out first: it
    moves nothing, since changes of attention sum to zero.
    """
    units, heads, tokens, _ = removals.shape
    mixing = removals.mixing
    if mixing is None:
        raise ValueError("an estimate needs the values and the Gram matrices of the output weight")
    mass = _mass(removals, whole)
    value = mixing.value
    shares = mass if value.shape[1] == heads else mass.sum(dim=1, keepdim=True)
    shares = shares / shares.sum(dim=2, keepdim=True).clamp_min(_TINY)
    value = value - (shares.unsqueeze(-2) @ value)
    groups, dim = len(mixing.factors), value.shape[-1]
    blocks = mixing.factors.view(groups, heads, dim, heads, dim)
    rest = _diagonal(value, blocks)
    smallest = rest.amax(dim=(1, 2)) * 1e-6 + _TINY
    directions = rest.new_zeros(units, heads, tokens, rank)
    unit = torch.arange(units, device=rest.device)
    for at in range(rank):
        pivot = (rest * mass).flatten(1).argmax(dim=1)
        head, position = pivot // tokens, pivot % tokens
        taken = value[unit, head if value.shape[1] > 1 else 0, position]
        through = blocks[mixing.factor_of, :, :, head] @ taken[:, None, :, None]
        if value.shape[1] == 1:
            row = torch.bmm(value[:, 0], through.squeeze(-1).mT).mT
        else:
            row = (value @ through).squeeze(-1)
        row = row - (directions @ directions[unit, head, position][:, None, :, None]).squeeze(-1)
        left = rest[unit, head, position]
        scale = torch.where(left > smallest, left, torch.inf).rsqrt_()
        directions[..., at] = row * scale[:, None, None]
        rest = (rest - directions[..., at].square()).clamp_min_(0.0)
    return directions, rest


def _mass(removals: Removals, whole: _Weights | None) -> Tensor:
    """The attention that each position gets over all rows, by head -> (U, m, T)."""
    if whole is not None:
        return whole.probabilities.sum(dim=2)
    units, heads, tokens, _ = removals.shape
    mass = removals.query.new_zeros(units, heads, tokens)
    for rows in removals.row_blocks(_ROWS):
        mass[..., rows.first : rows.last] += Seen.of(removals, rows).probabilities.sum(dim=3)
    return mass


def _diagonal(value: Tensor, blocks: Tensor) -> Tensor:
    """v_hᵀ G_hh v_h for every head and position -> (U, m, T)."""
    own = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    by_group = value.reshape(-1, len(blocks), *value.shape[1:])
    if value.shape[1] == 1:
        moved = torch.einsum("bgtd,gmde->bgmte", by_group[:, :, 0], own)
    else:
        moved = torch.einsum("bgmtd,gmde->bgmte", by_group, own)
    norms: Tensor = (moved.flatten(0, 1) * value).sum(dim=-1).clamp_min_(0.0)
    return norms
