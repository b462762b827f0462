"""What storing a changed weight in a checkpoint's precision keeps of the change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """`entries` of the patch, `nonzero` of them with Δ not 0, `changed` of them stored otherwise.

    `kept_share` is changed / nonzero. `relative_error` is ‖stored change − Δ‖ / ‖Δ‖ (Frobenius),
    the stored change being against the base in the same precision. `rounding` is the largest
    |stored − (weight + Δ)|.
    """

    entries: int
    nonzero: int
    changed: int
    kept_share: float
    relative_error: float
    max_abs_delta: float
    rounding: float


@dataclass
class Rounding:
    """Accumulates what is kept, slice by slice; two merge."""

    entries: int = 0
    nonzero: int = 0
    changed: int = 0
    bytes_changed: int = 0
    largest: float = 0.0
    rounding: float = 0.0
    squares: float = 0.0
    error_squares: float = 0.0

    def add(self, weight: Tensor, base: Tensor, delta: Tensor, stored: Tensor) -> None:
        """Entries of one slice, all of one shape, every entry of a weight in one call alone.

        `weight` as the checkpoint holds it, `base` and `stored` in the precision written.
        """
        if not delta.numel():
            return
        moved = (stored.double() - base.double()) - delta.double()
        self.entries += delta.numel()
        self.nonzero += int((delta != 0).sum())
        # NaN differs from itself; where Δ is 0 nothing was to change.
        self.changed += int(((stored != base) & (delta != 0)).sum())
        self.bytes_changed += int((_bytes(stored) != _bytes(base)).sum())
        self.largest = max(self.largest, float(delta.abs().max()))
        off = stored.float() - (weight.float() + delta)
        self.rounding = max(self.rounding, float(off.abs().max()))
        self.squares += float(delta.double().square().sum())
        self.error_squares += float(moved.square().sum())

    def merge(self, other: Rounding) -> None:
        """Count what `other` counted as well."""
        for name in ("entries", "nonzero", "changed", "bytes_changed", "squares", "error_squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = max(self.largest, other.largest)
        self.rounding = max(self.rounding, other.rounding)

    def result(self) -> Kept:
        """Shares and norms; of no change at all nothing is lost."""
        return Kept(
            self.entries,
            self.nonzero,
            self.changed,
            self.changed / self.nonzero if self.nonzero else 1.0,
            math.sqrt(self.error_squares / self.squares) if self.squares else 0.0,
            self.largest,
            self.rounding,
        )


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)
