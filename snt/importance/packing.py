"""A batch's real tokens, moved to the front: what every importance of the attention starts from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from snt.backend import Batch, LayerActivations, Turn

# Below this many tokens a beginning measured apart costs more than it saves.
_WORTH = 8


def packed(seen: LayerActivations, real: Tensor) -> LayerActivations:
    """What attention computed, with padding on the right, zero and invisible, cut to the longest.

    What a padded position holds (it may be anything, NaN included) is gone; it sees nothing and
    nothing sees it, so its rows of an attention are zero. The order of real tokens is kept. The
    fields that are no part of queries, keys and values are left as they were.
    real: (B, T) bool, False at padding.
    """
    if bool(real.all()):
        return seen
    longest = int(real.sum(dim=1).max())
    padded_left = bool((real[:, 1:] & ~real[:, :-1]).any())
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True) if padded_left else None
    kept = (real if order is None else real.gather(1, order))[:, :longest]

    def along(tensor: Tensor) -> Tensor:
        """Pack the second-last axis of (B, …, T, size)."""
        shape = (len(real), *([1] * (tensor.dim() - 3)), -1, 1)
        moved = tensor if order is None else tensor.take_along_dim(order.view(shape), dim=-2)
        return torch.where(kept.view(shape), moved[..., :longest, :], 0.0)

    def gain(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else along(tensor)

    visible = seen.visible
    if order is not None:
        visible = visible.take_along_dim(order[:, None, :, None], dim=-2)
        visible = visible.take_along_dim(order[:, None, None, :], dim=-1)
    visible = visible[..., :longest, :longest]
    return replace(
        seen,
        query_raw=along(seen.query_raw),
        key_raw=along(seen.key_raw),
        query=along(seen.query),
        key=along(seen.key),
        value=along(seen.value),
        turn=Turn(along(seen.turn.own), along(seen.turn.cross), seen.turn.partner),
        visible=visible & kept[:, None, :, None] & kept[:, None, None, :],
        query_gain=gain(seen.query_gain),
        key_gain=gain(seen.key_gain),
    )


def shared_beginning(batch: Batch, visible: Tensor) -> int:
    """Leading tokens that all prompts of a batch have in common and that see none after them; or 0.

    A chat template opens every prompt alike, and what causal attention does there depends on
    nothing else, so that it need be measured only once. visible: (B, 1 or H, T, T) bool.
    """
    alike = (batch.input_ids == batch.input_ids[:1]).all(dim=0) & batch.real.all(dim=0)
    # At least one row of their own is left to all prompts.
    tokens = min(int(alike.long().cumprod(dim=0).sum()), len(alike) - 1)
    if len(batch.real) == 1 or tokens < _WORTH or bool(visible[:, :, :tokens, tokens:].any()):
        return 0
    return tokens


def beginning(seen: LayerActivations, tokens: int) -> LayerActivations:
    """The first prompt's first tokens, as a batch of one; what is not attention stays whole."""

    def cut(part: Tensor) -> Tensor:
        return part[:1, ..., :tokens, :]

    return replace(
        seen,
        query_raw=cut(seen.query_raw),
        key_raw=cut(seen.key_raw),
        query=cut(seen.query),
        key=cut(seen.key),
        value=cut(seen.value),
        turn=Turn(cut(seen.turn.own), cut(seen.turn.cross), seen.turn.partner),
        visible=cut(seen.visible)[..., :tokens],
        query_gain=None if seen.query_gain is None else cut(seen.query_gain),
        key_gain=None if seen.key_gain is None else cut(seen.key_gain),
    )
