"""A change of attention to first order in the shift of its logits, as products for all neurons.

dP_ij = P_ij (x_ij − E_P[x_i]), with x a sum of lanes ρ_i(n)·c_j(n)·S_ij^power. What belongs to the
values is folded into the attention, on the left of a product, so that its right-hand side is the
lanes' columns alone, and one product serves all heads of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snt.importance.projection import Rows
from snt.importance.removals import Attention, Removals


@dataclass(frozen=True)
class Lane:
    """One term of the shift: rows_i · columns_j · S_ij^power, on some heads.

    rows: (U, m or 1, R, N). columns: (U, T, N or 1). power: 0 or 1. heads: which of the m.
    """

    rows: Tensor
    columns: Tensor
    power: int
    heads: slice

    def of_rows(self, rows: Rows) -> Tensor:
        return self.rows[:, :, rows.low : rows.high]


def lanes_of(removals: Removals, some: slice, within: slice) -> Iterator[Lane]:
    """Those of the own heads first."""
    for rows, columns in zip(removals.on_rows, removals.on_columns, strict=True):
        yield Lane(rows[some, ..., within], columns[some, ..., within], 0, removals.own_heads)
    if removals.row_gain is not None:
        gain = removals.row_gain[some, ..., within]
        by_head = gain if gain.dim() == 4 else gain.unsqueeze(1)
        everywhere = gain.new_ones(len(gain), removals.shape[2], 1)
        yield Lane(by_head, everywhere, 1, slice(None))
    if removals.column_gain is not None:
        gain = removals.column_gain[some, ..., within]
        everywhere = gain.new_ones(len(gain), 1, removals.rows, 1)
        yield Lane(everywhere, gain, 1, slice(None))


@dataclass(frozen=True)
class Sides:
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


@dataclass(frozen=True)
class _Term:
    """times · rows of `lane` (· rows of `other`, or the mean shift) · Σ_j left_ij columns_j.

    columns: (U, T, N or 1). slopes, power: of the left-hand side. heads: on which of the m it acts.
    """

    columns: Tensor
    slopes: int
    power: int
    heads: slice
    lane: Lane
    times: float = 1.0
    other: Lane | None = None


@dataclass(frozen=True)
class Products:
    """Terms that share a left-hand side, their columns side by side: (U, T, K, N or 1)."""

    terms: list[_Term]
    columns: Tensor

    def meet(self, left: Tensor, rows: Rows) -> Tensor:
        """(U, s, …, R, C) -> (U, s, …, R, K, N)."""
        right = self.columns[:, rows.first : rows.last].flatten(2)
        moved = torch.bmm(left.flatten(1, -2), right)
        return moved.view(*left.shape[:-1], *self.columns.shape[2:])


def _gathered(terms: Iterable[_Term]) -> list[Products]:
    sides: dict[tuple[int, int, int | None], list[_Term]] = {}
    for term in terms:
        sides.setdefault((term.slopes, term.power, term.heads.start), []).append(term)

    def side_by_side(members: list[_Term]) -> Tensor:
        widest = max(term.columns.shape[2] for term in members)
        return torch.stack([term.columns.expand(-1, -1, widest) for term in members], dim=2)

    return [Products(members, side_by_side(members)) for members in sides.values()]


def first_terms(lanes: list[Lane]) -> list[Products]:
    """What the shift consists of."""
    return _gathered(_Term(lane.columns, 1, lane.power, lane.heads, lane) for lane in lanes)


def second_terms(lanes: list[Lane], capped: bool) -> list[Products]:
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


def along_directions(
    first: list[Products], sides: Sides, along: Tensor, rows: Rows
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


def beside_directions(
    second: list[Products], sides: Sides, rest: Tensor, mean: Tensor, rows: Rows
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
