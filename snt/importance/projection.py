"""Changed attention through values and output projection, without ever forming the block's output.

‖Σ_h (P'_h − P_h) V W_o,hᵀ‖ over the m heads of a unit = ‖[… (P'_h − P_h) V …] F‖ with F Fᵀ the Gram
matrix of the unit's columns of W_o (see `snt.importance.query_key.head_factors`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Largest side T·m of a Gram matrix that is factored: beyond it, factoring costs more than it saves.
_LARGEST_GRAM = 1024


@dataclass(frozen=True)
class Rows:
    """A block of positions `low` to `high`; they see columns from `first` to `last`."""

    low: int
    high: int
    first: int
    last: int


@dataclass(frozen=True)
class Mixing:
    """What changed attention is multiplied with, for U units of m heads.

    value: (U, 1 or m, T, D). factors: (G, m·D, r). factor_of: (U,) int64, a unit's row of factors.
    """

    value: Tensor
    factors: Tensor
    factor_of: Tensor

    def some(self, units: slice) -> Mixing:
        return Mixing(self.value[units], self.factors, self.factor_of[units])

    def double(self) -> Mixing:
        return Mixing(self.value.double(), self.factors.double(), self.factor_of)

    def mixed(self) -> Tensor:
        """Values through each head's rows of the factor: (U, m, T, r)."""
        groups, _, width = self.factors.shape
        factors = self.factors.view(groups, -1, self.value.shape[-1], width)
        if len(self.factor_of) % groups:
            return self.value @ factors[self.factor_of]
        # One product per group rather than per prompt and group: the factors are not copied.
        by_group = self.value.reshape(-1, groups, *self.value.shape[1:])
        return torch.einsum("bgmtd,gmdr->bgmtr", by_group, factors).flatten(0, 1)


class Projection(Protocol):
    """For some units and a block of rows: (U, m, C, R, N) changes -> (U, r·R, N) of equal norms."""

    def __call__(self, units: slice, rows: Rows) -> Callable[[Tensor], Tensor]: ...


def projection(mixing: Mixing | None, heads: int, neurons: int, rows: int) -> Projection:
    """The cheapest way, by a count of products: factored, stacked, or value and factor in turn.

    Without a mixing the change itself is measured. `rows` of an attention are asked for, the last.
    """
    if mixing is None:
        return lambda _units, _rows: lambda change: change.flatten(1, 3)
    tokens, dim = mixing.value.shape[-2:]
    stacked, width = tokens * heads, mixing.factors.shape[2]
    # A row meets so many columns on average, and a triangular factor is no wider than those. To
    # make it takes a Gram matrix in float64 and its root: as measured, as long as 6 · side² · width
    # products of the kind saved.
    met = heads * (2 * tokens - rows) // 2
    saved = neurons * rows * met * (width - met)
    if stacked <= min(width, _LARGEST_GRAM) and saved > 6 * stacked * stacked * width:
        lower = _lower_factor(_by_head(mixing, heads))
        if lower is not None:
            return _Stacked(lower, triangular=True)
    # Per row of an attention: m·T·r products, or m·T·D and then m·D·r.
    if stacked * width <= stacked * dim + heads * dim * width or heads == 1:
        return _Stacked(_by_head(mixing, heads).permute(0, 3, 1, 2), triangular=False)
    return _InTurn(mixing)


def _by_head(mixing: Mixing, heads: int) -> Tensor:
    value = mixing.value.expand(-1, heads, -1, -1)
    return Mixing(value, mixing.factors, mixing.factor_of).mixed()


@dataclass(frozen=True)
class _Stacked:
    """Through one matrix (U, s, m, T)."""

    factor: Tensor
    triangular: bool

    def __call__(self, units: slice, rows: Rows) -> Callable[[Tensor], Tensor]:
        heads = self.factor.shape[2]
        # The first rows of a triangular factor need its first columns alone.
        width = rows.last * heads if self.triangular else self.factor.shape[1]
        columns = self.factor[units, :width, :, rows.first : rows.last].flatten(2)

        def through(change: Tensor) -> Tensor:
            moved = torch.bmm(columns, change.flatten(3).flatten(1, 2))
            return moved.view(len(moved), -1, change.shape[-1])

        return through


@dataclass(frozen=True)
class _InTurn:
    """First the values, then the factor: m times fewer products on long prompts."""

    mixing: Mixing

    def __call__(self, units: slice, rows: Rows) -> Callable[[Tensor], Tensor]:
        part = self.mixing.some(units)
        value = part.value[:, :, rows.first : rows.last].mT
        factors = part.factors[part.factor_of].mT

        def through(change: Tensor) -> Tensor:
            outputs = value @ change.flatten(3)
            moved = torch.bmm(factors, outputs.flatten(1, 2))
            return moved.view(len(moved), -1, change.shape[-1])

        return through


def _lower_factor(mixed: Tensor) -> Tensor | None:
    """(U, m, T, r) -> (U, T·m, m, T) with the same products of columns.

    Row (i, h) is zero in columns before position i: the transpose of a lower triangular matrix.
    None where values are linearly dependent to the last digit.
    """
    double = mixed.transpose(1, 2).flatten(1, 2).double()
    gram = double @ double.mT
    # Equal tokens have equal values in the first layer, and padding has none. What is added
    # is below the rounding of float32 values, and padded positions are never looked at.
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal += 1e-14 * diagonal.amax(dim=1, keepdim=True)
    diagonal[diagonal == 0.0] = 1.0
    lower, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        return None
    units, heads, tokens, _ = mixed.shape
    by_position: Tensor = lower.to(mixed.dtype).mT.reshape(units, -1, tokens, heads)
    return by_position.transpose(2, 3).contiguous()
