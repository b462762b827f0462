"""A batch's real tokens, moved to the front: what every importance of the attention starts from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snt.backend import LayerActivations, Turn


def packed(seen: LayerActivations, real: Tensor) -> LayerActivations:
    """What attention computed, with padding on the right, zero and invisible, cut to the longest.

    What a padded position holds (it may be anything, NaN included) is gone; it sees nothing and
    nothing sees it, so its rows of an attention are zero. The order of real tokens is kept. The
    fields that are no part of queries, keys and values are left as they were.
    real: (B, R) bool, False at padding.
    """
    if bool(real.all()):
        return seen
    longest = int(real.sum(dim=1).max())
    padded_left = bool((real[:, 1:] & ~real[:, :-1]).any())
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True) if padded_left else None
    kept = (real if order is None else real.gather(1, order))[:, :longest]
    before = seen.key.shape[2] - real.shape[1]
    if before:
        # All that comes before is real, and padding on the left of what follows is none of it.
        every = real.new_ones(len(real), before)
        order_of_all = None
        if order is not None:
            first = torch.arange(before, device=real.device).expand(len(real), -1)
            order_of_all = torch.cat([first, order + before], dim=1)
        columns = order_of_all, torch.cat([every, kept], dim=1)
    else:
        columns = order, kept

    def along(tensor: Tensor, axis: tuple[Tensor | None, Tensor]) -> Tensor:
        """Pack the second-last axis of (B, …, R or T, size)."""
        order, kept = axis
        shape = (len(real), *([1] * (tensor.dim() - 3)), -1, 1)
        moved = tensor if order is None else tensor.take_along_dim(order.view(shape), dim=-2)
        return torch.where(kept.view(shape), moved[..., : kept.shape[1], :], 0.0)

    def rows(tensor: Tensor) -> Tensor:
        return along(tensor, (order, kept))

    def all_columns(tensor: Tensor) -> Tensor:
        return along(tensor, columns)

    visible = seen.visible
    if order is not None:
        visible = visible.take_along_dim(order[:, None, :, None], dim=-2)
    if columns[0] is not None:
        visible = visible.take_along_dim(columns[0][:, None, None, :], dim=-1)
    visible = visible[..., :longest, : before + longest]
    return replace(
        seen,
        query_raw=rows(seen.query_raw),
        key_raw=all_columns(seen.key_raw),
        query=rows(seen.query),
        key=all_columns(seen.key),
        value=all_columns(seen.value),
        turn=Turn(all_columns(seen.turn.own), all_columns(seen.turn.cross), seen.turn.partner),
        visible=visible & kept[:, None, :, None] & columns[1][:, None, None, :],
        query_gain=None if seen.query_gain is None else rows(seen.query_gain),
        key_gain=None if seen.key_gain is None else all_columns(seen.key_gain),
    )
