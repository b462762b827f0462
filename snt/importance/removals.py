"""Neurons whose removal shifts attention logits, in the form that all measures of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snt.importance.projection import Mixing, Rows


@dataclass(frozen=True)
class Removals:
    """The N neurons of U units; a unit is m query heads whose changes add. R rows, T ≥ R columns.

    query: (U, m, R, D), times the softmax scale. key: (U, 1 or m, T, D). visible: (W, 1 or m, R, T)
    bool, of which unit u takes row visible_of[u]. on_rows: two (U, s, R, N), for the s heads
    from own[0] to own[1] of the m, by default all. on_columns: two (U, T, N). Logit S_ij of an own
    head shifts by Σ on_rows_i · on_columns_j. row_gain (U, R, N) or column_gain (U, T, N), on all
    heads: the shift grows by gain · S_ij. softcap c: logits S pass through c·tanh(·/c), and so do
    shifted ones, unless the shift comes after the cap (`shift_capped` False).

    separate: a unit is m heads that share columns, each with N neurons and a change of its own;
    row_gain is (U, m, R, N) then. Only estimates take units of this kind.
    """

    query: Tensor
    key: Tensor
    visible: Tensor
    visible_of: Tensor
    on_rows: tuple[Tensor, Tensor]
    on_columns: tuple[Tensor, Tensor]
    mixing: Mixing | None
    own: tuple[int, int] | None = None
    row_gain: Tensor | None = None
    column_gain: Tensor | None = None
    softcap: float | None = None
    shift_capped: bool = True
    separate: bool = False

    @property
    def own_heads(self) -> slice:
        """The heads that on_rows speaks of."""
        return slice(None) if self.own is None else slice(*self.own)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(U, m, T, N)."""
        units, heads, _, _ = self.query.shape
        _, columns, neurons = self.on_columns[0].shape
        return units, heads, columns, neurons

    @property
    def rows(self) -> int:
        """R."""
        return self.query.shape[2]

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
            mixing=None if self.mixing is None else self.mixing.some(only).double(),
            row_gain=None if self.row_gain is None else cut(self.row_gain),
            column_gain=None if self.column_gain is None else cut(self.column_gain),
        )

    def row_blocks(self, most: int, within: Rows | None = None) -> Iterator[Rows]:
        """Blocks of at most `most` rows with the columns that they see; blind rows are left out.

        `within` is a larger block that they divide.
        """
        start, stop = (within.low, within.high) if within else (0, self.rows)
        seen = self.visible[:, :, start:stop].flatten(0, 1).any(dim=0)
        for low in range(start, stop, most):
            high = min(low + most, stop)
            columns = seen[low - start : high - start].any(dim=0).nonzero().flatten()
            if len(columns):
                yield Rows(low, high, int(columns[0]), int(columns[-1]) + 1)


@dataclass(frozen=True)
class Attention:
    """Attention of a block of rows: (U, m, R, C), `visible` (U, 1 or m, R, C).

    logits: scaled, before cap and mask. Rows that see nothing have probability zero throughout.
    """

    logits: Tensor
    probabilities: Tensor
    visible: Tensor

    @staticmethod
    def of(removals: Removals, rows: Rows, units: slice = slice(None)) -> Attention:
        """Recomputed from queries and keys, so that no (heads, T, T) tensor need exist."""
        query = removals.query[units, :, rows.low : rows.high]
        key = removals.key[units, :, rows.first : rows.last]
        visible = removals.visible[:, :, rows.low : rows.high, rows.first : rows.last]
        visible = visible[removals.visible_of[units]]
        logits = query @ key.mT
        probabilities = masked_softmax(capped(logits, removals.softcap), visible, dim=-1)
        return Attention(logits, probabilities, visible)

    @staticmethod
    def block(
        removals: Removals, whole: Attention | None, rows: Rows, units: slice = slice(None)
    ) -> Attention:
        """A part of `whole`, which has all rows, or the part alone."""
        if whole is None:
            return Attention.of(removals, rows, units)
        return whole.part(rows, units=units)

    def part(self, rows: Rows, within: Rows | None = None, units: slice = slice(None)) -> Attention:
        """Some rows of this block, which is of the rows `within`; without it, of all."""
        low, first = (within.low, within.first) if within else (0, 0)

        def cut(part: Tensor) -> Tensor:
            part = part[units, :, rows.low - low : rows.high - low]
            return part[..., rows.first - first : rows.last - first]

        return Attention(cut(self.logits), cut(self.probabilities), cut(self.visible))

    def by_column(self) -> Attention:
        """The same with columns before rows in memory: (U, m, C, R)."""
        logits, probabilities = self.logits.mT.contiguous(), self.probabilities.mT.contiguous()
        return Attention(logits, probabilities, self.visible.mT)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """c·tanh(logits / c), or the logits themselves without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def masked_softmax(logits: Tensor, visible: Tensor, dim: int) -> Tensor:
    """Softmax over the visible entries of an axis; zero where there is none."""
    hidden = ~visible
    probabilities = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(dim=dim)
    return probabilities.masked_fill_(hidden, 0.0)
