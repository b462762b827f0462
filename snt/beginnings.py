"""Tokens that all prompts begin with: a chat template opens every one of them alike."""

from __future__ import annotations

from torch import Tensor

# Below this many tokens a pass of their own costs more than it saves.
WORTH = 8


def alike(rows: Tensor) -> int:
    """How many leading tokens the rows of (N, T) token ids have in common."""
    same = (rows == rows[:1]).all(dim=0)
    return int(same.long().cumprod(dim=0).sum())


def worth(length: int) -> int:
    """The length of a common beginning, or 0 where it is too short to gain by."""
    return length if length >= WORTH else 0
