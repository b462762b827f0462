"""How far attention outputs move when logits are shifted: the kernel of exact query and key maths.

With x_ij a neuron's shift of the logits, E = exp(x) and Z_i = Σ_j P_ij E_ij, the new attention is
P∘E/Z, and the importance is ‖(P∘E/Z − P) M‖ with M the values through the output projection. One
exponential per (neuron, i, j), and nothing is ever as large as neurons × T × T: rows go in blocks
that meet only the columns that they see, and units and neurons in chunks that fit the processor's
cache. Neurons lie innermost, so that every pass runs along whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from snt.importance.projection import Rows, projection
from snt.importance.removals import Attention, Removals, capped, masked_softmax

# Elements of one (units × neurons × rows × heads × columns) block: 1 MiB of float32, so that the
# passes over it run inside a core's second-level cache, yet dispatching each costs little.
_BLOCK = 1 << 18
# Rows of a block meet the columns of its last row: few rows waste less of the causal half, more
# make longer products.
_ROWS = 8
# Below, exp(x) − 1 loses the digits of x in float32; above, products of exponentials leave its
# range. Neurons whose bound on |x| lies outside are few, and take float64.
_SMALLEST_SHIFT, _LARGEST_SHIFT = 2.0**-10, 30.0


def change_norms(removals: Removals) -> Tensor:
    """‖(P' − P) M‖ for every neuron -> (U, N) float32."""
    result = _norms(removals)
    bound = shift_bound(removals)
    # A bound of zero is a neuron that is zero already, or a prompt of one token: exactly no change.
    odd = ((bound < _SMALLEST_SHIFT) & (bound > 0.0)) | (bound > _LARGEST_SHIFT)
    for unit in odd.any(dim=1).nonzero().flatten().tolist():
        neurons = odd[unit].nonzero().flatten()
        result[unit, neurons] = _norms(removals.in_double(unit, neurons))[0].float()
    return result


def _norms(removals: Removals) -> Tensor:
    units, heads, _, neurons = removals.shape
    squared = removals.on_rows[0].new_zeros(units, neurons)
    project = projection(removals.mixing, heads, neurons, removals.rows)
    for rows, seen in _row_blocks(removals):
        # Neurons lie side by side in memory: at least a vector of them at a time.
        chunk = max(16, _BLOCK // seen.probabilities[0].numel())
        step = max(1, chunk // neurons)
        for start in range(0, units, step):
            some = slice(start, start + step)
            through = project(some, rows)
            for at in range(0, neurons, chunk):
                within = slice(at, at + chunk)
                moved = through(_change(removals, seen, rows, some, within))
                squared[some, within] += moved.mul_(moved).sum(dim=1)
    return squared.sqrt_()


def _row_blocks(removals: Removals) -> Iterator[tuple[Rows, Attention]]:
    """As many rows as fit with all neurons, and their attention by column.

    Of a long prompt that is a single row; its attention is still made for several at a time, since
    a product of one row takes nearly as long.
    """
    _, heads, tokens, neurons = removals.shape
    most = max(1, min(_ROWS, _BLOCK // (heads * tokens * neurons)))
    for block in removals.row_blocks(_ROWS):
        attention = Attention.of(removals, block)
        for rows in [block] if most == _ROWS else removals.row_blocks(most, block):
            yield rows, attention.part(rows, block).by_column()


def _change(removals: Removals, seen: Attention, rows: Rows, some: slice, within: slice) -> Tensor:
    """P' − P of some units and neurons in a block of rows -> (U, m, C, R, N)."""

    def by_row(part: Tensor) -> Tensor:
        return part[some, ..., rows.low : rows.high, within].unsqueeze(-3)

    def by_column(part: Tensor) -> Tensor:
        return part[some, None, rows.first : rows.last, None, within]

    (rows_1, rows_2), (columns_1, columns_2) = removals.on_rows, removals.on_columns
    logits, kept = seen.logits[some].unsqueeze(-1), seen.probabilities[some].unsqueeze(-1)
    first = by_row(rows_1)
    if removals.own is None:
        shift = first * by_column(columns_1)
    else:
        shift = first.new_zeros(*logits.shape[:4], first.shape[-1])
        torch.mul(first, by_column(columns_1), out=shift[:, removals.own_heads])
    shift[:, removals.own_heads].addcmul_(by_row(rows_2), by_column(columns_2))
    if removals.row_gain is not None:
        shift.addcmul_(by_row(removals.row_gain).unsqueeze(1), logits)
    if removals.column_gain is not None:
        shift.addcmul_(by_column(removals.column_gain), logits)
    softcap = removals.softcap if removals.shift_capped else None
    if shift.dtype == torch.float64:
        # Whatever the size of the shift; here the difference of two softmaxes keeps its digits.
        moved = capped(shift.add_(logits), softcap)
        if not removals.shift_capped:
            moved += capped(logits, removals.softcap) - logits
        return masked_softmax(moved, seen.visible[some].unsqueeze(-1), dim=2).sub_(kept)
    if softcap is not None:
        shift = _capped_shift(shift, logits, softcap)
    shift.exp_().mul_(kept)
    total = shift.sum(dim=2, keepdim=True)
    return torch.addcmul(kept.neg(), shift, _reciprocal(total), out=shift)


def _reciprocal(total: Tensor) -> Tensor:
    # A padded row has no probability at all; its change is zero, not 0/0.
    return total.masked_fill_(total == 0.0, 1.0).reciprocal_()


def _capped_shift(shift: Tensor, logits: Tensor, softcap: float) -> Tensor:
    """c·tanh((S + x)/c) − c·tanh(S/c), without cancellation: c·sinh(x/c)/(cosh((S+x)/c)·cosh(S/c)).

    shift: x, which is overwritten.
    """
    level, moved = logits / softcap, shift.div_(softcap)
    both = (level + moved).cosh_().mul_(level.cosh())
    return moved.sinh_().div_(both).mul_(softcap)


def shift_bound(removals: Removals) -> Tensor:
    """An upper bound of |x|, without forming x -> (U, N), or (U, m, N) of separate heads."""
    heads_at_once = () if removals.separate else (1,)
    first, second = (
        rows.abs().amax(dim=(*heads_at_once, 2)) * _over(columns.abs().amax(dim=1), removals)
        for rows, columns in zip(removals.on_rows, removals.on_columns, strict=True)
    )
    bound = first + second
    for gain in (removals.row_gain, removals.column_gain):
        if gain is not None:
            longest = [
                torch.linalg.vector_norm(part, dim=-1).amax(dim=(1, 2))
                for part in (removals.query, removals.key)
            ]
            largest = gain.abs().amax(dim=-2)
            reach = longest[0] * longest[1]
            bound = bound + largest * reach.view(-1, *([1] * (largest.dim() - 1)))
    return bound


def _over(by_unit: Tensor, removals: Removals) -> Tensor:
    return by_unit.unsqueeze(1) if removals.separate else by_unit
