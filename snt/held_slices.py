"""Slices of weights with the values that they are to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snt.deltas import SliceKey

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class HeldSlice:
    """`indices` (n,) along `axis` of a parameter, and the values that it keeps there."""

    key: SliceKey
    parameter: nn.Parameter
    axis: int
    indices: Tensor
    values: Tensor

    @staticmethod
    def of(key: SliceKey, parameter: nn.Parameter, axis: int, indices: Tensor) -> HeldSlice:
        """Keep what is there now."""
        at = indices.to(parameter.device)
        values = parameter.detach().index_select(axis, at).clone()
        return HeldSlice(key, parameter, axis, at, values)

    @property
    def bias(self) -> bool:
        """Whether it is of a bias."""
        return self.parameter.ndim == 1

    def now(self) -> Tensor:
        """What is there now."""
        return self.parameter.detach().index_select(self.axis, self._at())

    def restore(self) -> None:
        """Put the kept values back."""
        values = self.values.to(self.parameter.device, self.parameter.dtype)
        with torch.no_grad():
            self.parameter.index_copy_(self.axis, self._at(), values)

    def changed(self) -> int:
        """Entries whose bits are not those that are kept."""
        now = self.now()
        kept = self.values.to(now.device, now.dtype)
        return int((_bits(now) != _bits(kept)).sum())

    def still(self, parameter: Tensor) -> None:
        """Zero the gradient there."""
        if parameter.grad is not None:
            parameter.grad.index_fill_(self.axis, self._at(), 0)

    def _at(self) -> Tensor:
        return self.indices.to(self.parameter.device)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(_BITS[values.element_size()])
