"""A batch's real tokens, moved to the front: what every importance of the attention starts from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snt.backend import LayerActivations, Turn


def packed(seen: LayerActivations, real: Tensor) -> LayerActivations:
    """The same activations with padding on the right, zero and invisible, and cut to the longest.

    What a padded position holds (it may be anything, NaN included) is gone; it sees nothing and
    nothing sees it, so its rows of an attention are zero. Order of real tokens is kept. `middle`
    and `attended` are packed too. real: (B, T) bool, False at padding.
    """
    longest = int(real.sum(dim=1).max())
    if bool(real[:, :longest].all()) and longest == real.shape[1]:
        return seen
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    kept = real.gather(1, order)

    def along(tensor: Tensor) -> Tensor:
        """Pack the second-last axis of (B, …, T, size)."""
        shape = (len(order), *([1] * (tensor.dim() - 3)), longest, 1)
        moved = tensor.take_along_dim(order.view(shape), dim=-2)
        return torch.where(kept.view(shape), moved, 0.0)

    def gain(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else along(tensor)

    visible = seen.visible.take_along_dim(order[:, None, :, None], dim=-2)
    visible = visible.take_along_dim(order[:, None, None, :], dim=-1)
    return replace(
        seen,
        middle=along(seen.middle),
        query_raw=along(seen.query_raw),
        key_raw=along(seen.key_raw),
        query=along(seen.query),
        key=along(seen.key),
        value=along(seen.value),
        turn=Turn(along(seen.turn.own), along(seen.turn.cross), seen.turn.partner),
        visible=visible & kept[:, None, :, None] & kept[:, None, None, :],
        attended=along(seen.attended),
        query_gain=gain(seen.query_gain),
        key_gain=gain(seen.key_gain),
    )
