"""The published way: the changed attention of all neurons at once, in one tensor.

A plain transcription of the parallel formula (Zhao et al., ICLR 2025, equations 5 and 6), kept to
compare with: ‖softmax(S − Δ) − softmax(S)‖ for every query or key neuron, where Δ has an entry for
every (head, coordinate, row, column).
"""

from __future__ import annotations

import torch
from torch import Tensor

from snt.backend import LayerActivations


def query_scores(seen: LayerActivations) -> Tensor:
    """(B, H·D), from a tensor of B·H·D·T·T elements."""
    return _scores(seen).flatten(1)


def key_scores(seen: LayerActivations) -> Tensor:
    """(B, G·D): a key neuron's change is that of the query heads of its group."""
    by_head = _scores(seen)
    return by_head.unflatten(1, (seen.key.shape[1], -1)).square().sum(dim=2).sqrt().flatten(1)


def _scores(seen: LayerActivations) -> Tensor:
    key = seen.key.repeat_interleave(seen.query.shape[1] // seen.key.shape[1], dim=1)
    logits = (seen.query @ key.mT * seen.scale).masked_fill(~seen.visible, -torch.inf)
    delta = seen.query.mT.unsqueeze(-1) * key.mT.unsqueeze(-2) * seen.scale
    changed = (logits.unsqueeze(2) - delta).softmax(dim=-1)
    changed = changed - logits.softmax(dim=-1).unsqueeze(2)
    return changed.square().sum(dim=(-2, -1)).sqrt()
