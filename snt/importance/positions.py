"""Which positions of a prompt count: all, or the last, where the reply is decided."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import Tensor

from snt.backend import LayerActivations
from snt.errors import RequestError


@dataclass(frozen=True)
class Positions:
    """The last `last` real tokens of every prompt, or all of them where it is None.

    With a chat template the last tokens are those that open the assistant's turn: there a model
    has read the request and has not begun to answer.
    """

    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> Positions:
        """Read `all` or `last=5`. Raises RequestError."""
        if text == "all":
            return cls()
        match = re.fullmatch(r"last=([1-9][0-9]{0,5})", text)
        if match is None:
            raise RequestError(f"--positions {text!r} are none; write all, or last=5")
        return cls(int(match.group(1)))

    def __str__(self) -> str:
        return "all" if self.last is None else f"last={self.last}"

    def counted(self, real: Tensor) -> Tensor:
        """(B, T) bool, False at padding -> (B, T) bool, the positions that count."""
        if self.last is None:
            return real
        behind = real.flip(1).long().cumsum(dim=1).flip(1)
        return real & (behind <= self.last)

    def seen(self, seen: LayerActivations, counted: Tensor) -> LayerActivations:
        """The same activations, positions that do not count attending to nothing.

        What a query or key neuron changes is measured row by row of an attention, and a row that
        attends to nothing cannot change.
        """
        if self.last is None:
            return seen
        return replace(seen, visible=seen.visible & counted[:, None, :, None])
