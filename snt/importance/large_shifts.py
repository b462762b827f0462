"""Estimates of the neurons that shift logits most: from the changed attention, not its slope."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snt.importance.attention_change import shift_bound
from snt.importance.projection import Rows
from snt.importance.removals import Attention, Removals, capped

# Most elements of a (neurons × heads × rows × columns) block.
_BLOCK = 1 << 18
_ROWS = 64
# Shifts are cut at this size.
_LARGEST = 30.0


def redo_large(
    removals: Removals,
    squared: Tensor,
    directions: Tensor,
    rest: Tensor,
    attention: Attention | None,
    above: float,
) -> None:
    """Overwrite the squared norms of neurons that may shift a logit by more than `above` nats.

    squared: (U, m or 1, N), as units are separate heads or not. directions, rest: (U, m, T, r) and
    (U, m, T), of `snt.importance.sketch`. attention: of all rows, where that is known.
    """
    # A NaN is above nothing, and its prompt is dropped in any case.
    flat = (shift_bound(removals).flatten() > above).nonzero().flatten()
    neurons, lines = squared.shape[2], squared.shape[1]
    neuron, head, unit = flat % neurons, flat // neurons % lines, flat // (neurons * lines)
    again = squared.new_zeros(len(flat))
    for rows in removals.row_blocks(_ROWS):
        here = Attention.block(removals, attention, rows)
        step = max(1, _BLOCK // here.probabilities[0].numel())
        for start in range(0, len(flat), step):
            some = slice(start, start + step)
            picked = (unit[some], head[some] if removals.separate else None, neuron[some])
            again[some] += _squared_change(removals, here, rows, directions, rest, *picked)
    squared[unit, head, neuron] = again


def _squared_change(
    removals: Removals,
    attention: Attention,
    rows: Rows,
    directions: Tensor,
    rest: Tensor,
    unit: Tensor,
    head: Tensor | None,
    neuron: Tensor,
) -> Tensor:
    """‖(P' − P) M‖² of a block of rows for some neurons -> (K,)."""

    def heads_of(part: Tensor) -> Tensor:
        return part[unit] if head is None else part[unit, head].unsqueeze(1)

    def by_row(part: Tensor) -> Tensor:
        lines = part[:, :, rows.low : rows.high].permute(0, 3, 1, 2)
        picked = lines[unit, neuron] if head is None else lines[unit, neuron, head].unsqueeze(1)
        return picked.unsqueeze(-1)

    def by_column(part: Tensor) -> Tensor:
        return part[:, rows.first : rows.last].mT[unit, neuron][:, None, None]

    kept = heads_of(attention.probabilities)
    if removals.own is None:
        shift = by_row(removals.on_rows[0]) * by_column(removals.on_columns[0])
    else:
        shift = torch.zeros_like(kept)
        own = shift[:, removals.own_heads]
        own.addcmul_(by_row(removals.on_rows[0]), by_column(removals.on_columns[0]))
    shift[:, removals.own_heads].addcmul_(
        by_row(removals.on_rows[1]), by_column(removals.on_columns[1])
    )
    bends = removals.softcap is not None or removals.row_gain is not None
    if bends or removals.column_gain is not None:
        shift = _bent(removals, shift, heads_of(attention.logits), by_row, by_column)
    # Beyond, one position has all the attention already, and exponentials leave their range.
    change = shift.clamp_(-_LARGEST, _LARGEST).exp_().mul_(kept)
    total = change.sum(dim=-1, keepdim=True)
    change.mul_(total.masked_fill_(total == 0.0, 1.0).reciprocal_()).sub_(kept)
    met = slice(rows.first, rows.last)
    along = (change @ heads_of(directions)[:, :, met]).sum(dim=1)
    beside = change.square_() @ heads_of(rest)[:, :, met].unsqueeze(-1)
    return along.square_().sum(dim=(1, 2)) + beside.sum(dim=(1, 2, 3))


def _bent(
    removals: Removals,
    shift: Tensor,
    logits: Tensor,
    by_row: Callable[[Tensor], Tensor],
    by_column: Callable[[Tensor], Tensor],
) -> Tensor:
    """The shift with what a norm's gain adds to it, through the cap."""
    if removals.row_gain is not None:
        gain = removals.row_gain
        shift.addcmul_(by_row(gain if gain.dim() == 4 else gain.unsqueeze(1)), logits)
    if removals.column_gain is not None:
        shift.addcmul_(by_column(removals.column_gain), logits)
    if removals.softcap is None:
        return shift
    return capped(logits + shift, removals.softcap) - capped(logits, removals.softcap)
