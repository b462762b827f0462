"""Sums, scales and comparisons of patches' deltas: pure functions on slices, no files.

A weight's change ΔW is what its row slice and its column slice hold, added where they cross. A LoRA
adapter has no such slices; that two tunings of few neurons can be added entry by entry is what the
slices are good for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snt.anatomy import Axis
from snt.deltas import SliceKey
from snt.errors import RequestError

Slices = Mapping[SliceKey, tuple[Tensor, Tensor]]
Rule = Literal["sum", "first", "last"]
RULES = ("sum", "first", "last")
LARGEST_SCALE = 2.0
_SHOWN = 3


@dataclass(frozen=True)
class Conflict:
    """Places of one weight that two patches train: shared rows or columns, or crossings.

    `count` rows, columns, or entries where rows of one meet columns of the other; `first` few of
    them, entries as (row, column).
    """

    layer: int
    module: str
    what: Literal["rows", "cols", "crossings"]
    count: int
    first: tuple[int, ...] | tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.first)) + (", …" if self.count > len(self.first) else "")
        crossings = "entries where rows cross columns"
        what = {"rows": "rows", "cols": "columns", "crossings": crossings}[self.what]
        return f"layers.{self.layer}.{self.module}: {self.count} {what} ({shown})"


def conflicts(first: Slices, second: Slices) -> tuple[Conflict, ...]:
    """Where both patches train the same entries, by layer and module."""
    found = []
    for key in sorted(first):
        indices = first[key][0]
        if key in second:
            shared = indices[torch.isin(indices, second[key][0])].tolist()
            if shared:
                named = tuple(shared[:_SHOWN])
                found.append(Conflict(key.layer, key.module, key.axis, len(shared), named))
        other = _crossing(key)
        if other in second and len(indices) and len(second[other][0]):
            rows, columns = (x.tolist() for x in _by_axis(key, indices, second[other][0]))
            pairs = tuple((row, column) for row in rows[:_SHOWN] for column in columns[:_SHOWN])
            count = len(rows) * len(columns)
            found.append(Conflict(key.layer, key.module, "crossings", count, pairs[:_SHOWN]))
    return tuple(found)


def stacked(
    first: Slices, second: Slices, rule: Rule = "sum"
) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """One patch of two. `sum` adds their ΔW; `first` and `last` say whose entries stay of those
    that both train, and the other's are left out.

    Exact for rows of one that cross columns of the other. Precision is that of the deltas given.
    """
    if rule == "first":
        second = _without(second, first)
    elif rule == "last":
        first = _without(first, second)
    made = {}
    for key in sorted(first.keys() | second.keys()):
        parts = [slices[key] for slices in (first, second) if key in slices]
        indices = torch.unique(torch.cat([at for at, _ in parts]))
        dim = _dim(key.axis)
        size = list(parts[0][1].shape)
        size[dim] = len(indices)
        delta = parts[0][1].new_zeros(size)
        for at, part in parts:
            delta.index_add_(dim, torch.searchsorted(indices, at), part)
        made[key] = (indices.to(torch.int32), delta)
    return {key: part for key, part in made.items() if len(part[0])}


def as_type(slices: Slices, dtype: torch.dtype) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """The same slices with deltas of another precision."""
    return {key: (indices, delta.to(dtype)) for key, (indices, delta) in slices.items()}


def scaled(slices: Slices, scale: float) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """ΔW · scale. Raises RequestError for a scale outside 0 to 2."""
    check_scale(scale)
    return {key: (indices, delta * scale) for key, (indices, delta) in slices.items()}


def check_scale(scale: float) -> None:
    """Raises RequestError for a scale outside 0 to 2, which would reverse or distort a patch."""
    if not (math.isfinite(scale) and 0 <= scale <= LARGEST_SCALE):
        raise RequestError(
            f"a scale of {scale:g} is not served; give 0 to {LARGEST_SCALE:g}. Below 0 a patch "
            "would be reversed, and nothing here takes safety out of a model; far above 1 its "
            "weights are no longer what was measured"
        )


def crossed(slices: Slices) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """Slices that each hold the whole ΔW of their entries, so that either can be written alone.

    An entry where a weight's rows cross its columns is in both, with the sum of the two.
    """
    made = dict(slices)
    for key, (indices, delta) in slices.items():
        if key.axis == "cols" or _crossing(key) not in slices:
            continue
        columns, other = slices[_crossing(key)]
        rows, at = indices.long(), columns.long()
        total = delta[:, at] + other[rows]
        delta, other = delta.clone(), other.clone()
        delta[:, at], other[rows] = total, total
        made[key], made[_crossing(key)] = (indices, delta), (columns, other)
    return made


def disjoint(slices: Slices) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """The same ΔW with every entry in one slice alone: crossings count to the rows."""
    made = crossed(slices)
    for key, (indices, delta) in made.items():
        if key.axis == "cols" and _crossing(key) in made:
            delta = delta.clone()
            delta[made[_crossing(key)][0].long()] = 0
            made[key] = (indices, delta)
    return made


@dataclass(frozen=True)
class Comparison:
    """Two patches in one module, or over all: entries that only one or both change (Δ not 0).

    Norms are Frobenius norms of ΔW; `cosine` is None where one of them is zero.
    """

    only_first: int
    only_second: int
    both: int
    norm_first: float
    norm_second: float
    norm_difference: float
    cosine: float | None


def compared(first: Slices, second: Slices) -> dict[str, Comparison]:
    """Two patches by module name, over all layers; under "all" everything. Sums in float64."""
    one, two = (disjoint(as_type(slices, torch.float64)) for slices in (first, second))
    minus = {key: (indices, -delta) for key, (indices, delta) in two.items()}
    rest = disjoint(stacked(one, minus))
    modules = sorted({key.module for key in (*one, *two)})
    sums = {module: _Sums() for module in modules}
    for slices, name in ((one, "first"), (two, "second"), (rest, "rest")):
        for key, (_, delta) in slices.items():
            sums[key.module].squares[name] += float(delta.square().sum())
            sums[key.module].nonzero[name] += int((delta != 0).sum())
    for key, x, y in _aligned(one, two):
        sums[key.module].both += int(((x != 0) & (y != 0)).sum())
        sums[key.module].product += float((x * y).sum())
    total = _Sums()
    for part in sums.values():
        total.merge(part)
    return {name: part.result() for name, part in {**sums, "all": total}.items()}


class _Sums:
    def __init__(self) -> None:
        self.squares = dict.fromkeys(("first", "second", "rest"), 0.0)
        self.nonzero = dict.fromkeys(("first", "second", "rest"), 0)
        self.both, self.product = 0, 0.0

    def merge(self, other: _Sums) -> None:
        for name in self.squares:
            self.squares[name] += other.squares[name]
            self.nonzero[name] += other.nonzero[name]
        self.both += other.both
        self.product += other.product

    def result(self) -> Comparison:
        one, two, rest = (math.sqrt(self.squares[name]) for name in ("first", "second", "rest"))
        cosine = max(-1.0, min(1.0, self.product / (one * two))) if one and two else None
        first, second = (self.nonzero[name] - self.both for name in ("first", "second"))
        return Comparison(first, second, self.both, one, two, rest, cosine)


def _aligned(first: Slices, second: Slices) -> Iterator[tuple[SliceKey, Tensor, Tensor]]:
    """Per pair of slices that share entries the two deltas of those entries, in one order."""
    for key, (at, x) in first.items():
        if key in second:
            other, y = second[key]
            dim = _dim(key.axis)
            mine, theirs = (torch.isin(*p).nonzero()[:, 0] for p in ((at, other), (other, at)))
            yield key, x.index_select(dim, mine), y.index_select(dim, theirs)
        crossing = _crossing(key)
        if crossing in second:
            other, y = second[crossing]
            dim = _dim(key.axis)
            yield key, x.index_select(1 - dim, other), y.index_select(dim, at)


def _without(slices: Slices, winner: Slices) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """`slices` less every entry that `winner` trains."""
    made = {}
    for key, (indices, delta) in slices.items():
        dim = _dim(key.axis)
        if key in winner:
            kept = (~torch.isin(indices, winner[key][0])).nonzero()[:, 0]
            indices, delta = indices[kept], delta.index_select(dim, kept)
        if _crossing(key) in winner:
            delta = delta.index_fill(1 - dim, winner[_crossing(key)][0].long(), 0.0)
        made[key] = (indices, delta)
    return made


def _crossing(key: SliceKey) -> SliceKey:
    return SliceKey(key.layer, key.module, "cols" if key.axis == "rows" else "rows")


def _by_axis(key: SliceKey, mine: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) of two crossing slices."""
    return (mine, other) if key.axis == "rows" else (other, mine)


def _dim(axis: Axis) -> int:
    return 0 if axis == "rows" else 1
