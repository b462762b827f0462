"""Estimates of the neurons that shift logits most: from the changed attention, not its slope."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from snt.importance.attention_change import shift_bound
from snt.importance.projection import Rows
from snt.importance.removals import Attention, Removals, capped

# Most elements of a (neurons × heads × rows × columns) block.
_BLOCK = 1 << 18
_ROWS = 64


def redo_large(
    removals: Removals,
    squared: Tensor,
    directions: Tensor,
    rest: Tensor,
    attention: Attention | None,
    share: float,
) -> None:
    """Overwrite the squared norms of each prompt's `share` of neurons with the largest shifts.

    squared: (U, m or 1, N), as units are separate heads or not. directions, rest: (U, m, T, r) and
    (U, m, T), of `snt.importance.sketch`. attention: of all rows, where that is known.
    """
    mixing = removals.mixing
    prompts = len(squared) // (1 if mixing is None else len(mixing.factors))
    bound = shift_bound(removals).view(prompts, -1)
    count = ceil(share * bound.shape[1])
    # A NaN would be taken for the largest, and fill the share in vain.
    chosen = bound.nan_to_num(0.0).topk(count, dim=1).indices
    within = bound.shape[1] * torch.arange(prompts, device=bound.device).unsqueeze(1)
    flat = (chosen + within).flatten()
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

    kept, logits = heads_of(attention.probabilities), heads_of(attention.logits)
    shift = torch.zeros_like(kept)
    own = shift[:, removals.own_heads]
    for lines, columns in zip(removals.on_rows, removals.on_columns, strict=True):
        own.addcmul_(by_row(lines), by_column(columns))
    if removals.row_gain is not None:
        gain = removals.row_gain
        shift.addcmul_(by_row(gain if gain.dim() == 4 else gain.unsqueeze(1)), logits)
    if removals.column_gain is not None:
        shift.addcmul_(by_column(removals.column_gain), logits)
    if removals.softcap is not None:
        shift = capped(logits + shift, removals.softcap) - capped(logits, removals.softcap)
    # Hidden entries must not decide what the exponentials are measured from.
    shift = shift.masked_fill_(kept == 0.0, -torch.inf)
    largest = shift.amax(dim=-1, keepdim=True).nan_to_num_(neginf=0.0)
    after = (shift - largest).exp_().mul_(kept)
    total = after.sum(dim=-1, keepdim=True)
    change = (after / total.masked_fill_(total == 0.0, 1.0)).sub_(kept)
    met = slice(rows.first, rows.last)
    along = (change @ heads_of(directions)[:, :, met]).sum(dim=1)
    beside = change.square_() @ heads_of(rest)[:, :, met].unsqueeze(-1)
    return along.square_().sum(dim=(1, 2)) + beside.sum(dim=(1, 2, 3))
