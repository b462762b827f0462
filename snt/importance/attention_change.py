"""How far attention outputs move when logits are shifted: the kernel of exact query and key maths.

A unit is a set of m query heads whose changes add before the norm is taken. Every neuron of a unit
shifts the logits by x_ij; with E = exp(x) and Z_i = Σ_j P_ij E_ij the new attention is P∘E/Z, and
the importance is ‖(P∘E/Z − P) M‖ with M the values through the output projection. One exponential
per (neuron, i, j), and nothing is ever as large as neurons × T × T: rows go in blocks that meet
only the columns that they see, and units and neurons in chunks that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snt.importance.projection import Mixing, Rows, projection

# Elements of one (units × neurons × rows × heads × columns) block: 1 MiB of float32, so that the
# passes over it run inside a core's second-level cache, yet dispatching each costs little.
_BLOCK = 1 << 18
# Rows of a block meet the columns of its last row: few rows waste less of the causal half, more
# make longer products.
_ROWS = 8
# Below, exp(x) − 1 loses the digits of x in float32; above, products of exponentials leave its
# range. Neurons whose bound on |x| lies outside are few, and take float64.
_SMALLEST_SHIFT, _LARGEST_SHIFT = 2.0**-10, 30.0


@dataclass(frozen=True)
class Removals:
    """The N neurons of U units, each with m query heads; T positions, r columns of values.

    query: (U, m, T, D), times the softmax scale. key: (U, 1 or m, T, D). visible: (W, 1 or m, T, T)
    bool, of which unit u takes row visible_of[u]. on_rows: two (U, m, T, N) and
    on_columns: two (U, T, N): the shift before gains is Σ on_rows_i · on_columns_j. row_gain or
    column_gain: (U, T, N), adds gain · logit. softcap c: logits S and S + shift both pass through
    c·tanh(·/c).
    """

    query: Tensor
    key: Tensor
    visible: Tensor
    visible_of: Tensor
    on_rows: tuple[Tensor, Tensor]
    on_columns: tuple[Tensor, Tensor]
    mixing: Mixing
    row_gain: Tensor | None = None
    column_gain: Tensor | None = None
    softcap: float | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(U, m, T, N)."""
        units, heads, tokens, neurons = self.on_rows[0].shape
        return units, heads, tokens, neurons

    def in_double(self, unit: int, neurons: Tensor) -> Removals:
        """Some neurons of one unit, in float64."""
        only = slice(unit, unit + 1)

        def cut(part: Tensor) -> Tensor:
            return part[only][..., neurons].double()

        return replace(
            self,
            query=self.query[only].double(),
            key=self.key[only].double(),
            visible_of=self.visible_of[only],
            on_rows=(cut(self.on_rows[0]), cut(self.on_rows[1])),
            on_columns=(cut(self.on_columns[0]), cut(self.on_columns[1])),
            mixing=self.mixing.some(only).double(),
            row_gain=None if self.row_gain is None else cut(self.row_gain),
            column_gain=None if self.column_gain is None else cut(self.column_gain),
        )


def change_norms(removals: Removals) -> Tensor:
    """‖(P' − P) M‖ for every neuron -> (U, N) float32."""
    result = _norms(removals)
    bound = _shift_bound(removals)
    # A bound of zero is a neuron that is zero already, or a prompt of one token: exactly no change.
    odd = ((bound < _SMALLEST_SHIFT) & (bound > 0.0)) | (bound > _LARGEST_SHIFT) | bound.isnan()
    for unit in odd.any(dim=1).nonzero().flatten().tolist():
        neurons = odd[unit].nonzero().flatten()
        result[unit, neurons] = _norms(removals.in_double(unit, neurons))[0].float()
    return result


def _norms(removals: Removals) -> Tensor:
    units, heads, _, neurons = removals.shape
    squared = removals.on_rows[0].new_zeros(units, neurons)
    project = projection(removals.mixing, heads, neurons)
    for rows in _row_blocks(removals):
        seen = _Seen.of(removals, rows)
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


@dataclass(frozen=True)
class _Seen:
    """Of a block of rows, column by column: logits before capping and probabilities.

    All (U, m, C, R), `visible` (U, 1 or m, C, R) bool.
    """

    logits: Tensor
    probabilities: Tensor
    visible: Tensor

    @staticmethod
    def of(removals: Removals, rows: Rows) -> _Seen:
        query = removals.query[:, :, rows.low : rows.high]
        key = removals.key[:, :, rows.first : rows.last]
        visible = removals.visible[:, :, rows.low : rows.high, rows.first : rows.last]
        visible = visible[removals.visible_of].mT.contiguous()
        logits = (query @ key.mT).mT.contiguous()
        probabilities = masked_softmax(capped(logits, removals.softcap), visible)
        return _Seen(logits, probabilities, visible)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """c·tanh(logits / c), or the logits themselves without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def masked_softmax(logits: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the visible entries of the third axis: (U, m, C, …), zero where none is."""
    hidden = ~visible
    probabilities = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(dim=2)
    return probabilities.masked_fill_(hidden, 0.0)


def _change(removals: Removals, seen: _Seen, rows: Rows, some: slice, within: slice) -> Tensor:
    """P' − P of some units and neurons in a block of rows -> (U, m, C, R, N)."""

    def by_row(part: Tensor) -> Tensor:
        return part[some, ..., rows.low : rows.high, within].unsqueeze(-3)

    def by_column(part: Tensor) -> Tensor:
        return part[some, None, rows.first : rows.last, None, within]

    (rows_1, rows_2), (columns_1, columns_2) = removals.on_rows, removals.on_columns
    logits, kept = seen.logits[some].unsqueeze(-1), seen.probabilities[some].unsqueeze(-1)
    shift = by_row(rows_1) * by_column(columns_1)
    shift.addcmul_(by_row(rows_2), by_column(columns_2))
    if removals.row_gain is not None:
        shift.addcmul_(by_row(removals.row_gain).unsqueeze(1), logits)
    if removals.column_gain is not None:
        shift.addcmul_(by_column(removals.column_gain), logits)
    if removals.softcap is not None:
        shift = _capped_shift(shift, logits, removals.softcap)
    if shift.dtype == torch.float64:
        # Whatever the size of the shift; here the difference of two softmaxes keeps its digits.
        moved = shift.add_(capped(logits, removals.softcap))
        return masked_softmax(moved, seen.visible[some].unsqueeze(-1)).sub_(kept)
    shift.exp_().mul_(kept)
    total = shift.sum(dim=2, keepdim=True)
    return torch.addcmul(kept.neg(), shift, _reciprocal(total), out=shift)


def _reciprocal(total: Tensor) -> Tensor:
    # A padded row has no probability at all; its change is zero, not 0/0.
    return total.masked_fill_(total == 0.0, 1.0).reciprocal_()


def _capped_shift(shift: Tensor, logits: Tensor, softcap: float) -> Tensor:
    """c·tanh((S + x)/c) − c·tanh(S/c), without cancellation: c·u(1 − t²)/(1 + t·u)."""
    level = torch.tanh(logits / softcap)
    moved = shift.div_(softcap).tanh_()
    return moved * (1.0 - level.square()).mul_(softcap) / (1.0 + level * moved)


def _shift_bound(removals: Removals) -> Tensor:
    """An upper bound of |x| for every neuron -> (U, N), without forming x."""
    largest = [
        rows.abs().amax(dim=2).amax(dim=1) * columns.abs().amax(dim=1)
        for rows, columns in zip(removals.on_rows, removals.on_columns, strict=True)
    ]
    bound = largest[0] + largest[1]
    for gain in (removals.row_gain, removals.column_gain):
        if gain is not None:
            longest = [
                torch.linalg.vector_norm(part, dim=-1).amax(dim=(1, 2))
                for part in (removals.query, removals.key)
            ]
            bound = bound + gain.abs().amax(dim=1) * (longest[0] * longest[1]).unsqueeze(1)
    return bound


def _row_blocks(removals: Removals) -> Iterator[Rows]:
    """Blocks of rows with the columns that they see; rows that see nothing are left out."""
    _, heads, tokens, neurons = removals.shape
    seen = removals.visible.flatten(0, 1).any(dim=0)
    step = max(1, min(_ROWS, _BLOCK // (heads * tokens * neurons)))
    for low in range(0, tokens, step):
        columns = seen[low : low + step].any(dim=0).nonzero().flatten()
        if len(columns):
            yield Rows(low, min(low + step, tokens), int(columns[0]), int(columns[-1]) + 1)
