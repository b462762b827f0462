"""What the code published with Zhao et al., ICLR 2025, computes, to reproduce its neuron files.

It differs from the paper: feed-forward neurons score Σ_t |up projection| with no gate; value
neurons Σ_t |attention output|; queries and keys share one score, ‖softmax(S − q̃ k̃ᵀ) − P‖_F² of one
coordinate after the rotary embedding, with the product not scaled as the logits S are. Key and
value scores stand on the axis of the repeated (query) heads, and the files' indices on that axis
are divided by the group size n before they select rows of the key and value projections: row r is
taken when any of the indices n·r … n·r + n − 1 was. So row r gets here the largest of those n
scores, and the rows of any top-k on the repeated axis are those that rank first here. (That rule
mixes coordinates of unrelated heads; it is theirs, and kept.) Positions that the mask hides stay
hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snt.backend import LayerActivations
from snt.importance.attention_change import change_norms
from snt.importance.packing import packed
from snt.importance.removals import Removals


def released_ffn_score(up: Tensor, real: Tensor) -> Tensor:
    """Σ_t |up_proj(x)| -> (B, F) float32.

    up: (B, T, F), output of the up projection. real: (B, T) bool, False at padding.
    """
    kept = torch.where(real.unsqueeze(-1), up.float(), 0.0)
    return kept.abs_().sum(dim=1)


def released_value_score(attended: Tensor, kv_heads: int, real: Tensor) -> Tensor:
    """Σ_t |attention output| of each query-head coordinate, by row of v_proj -> (B, G·D).

    attended: (B, H, T, D). real: (B, T) bool.
    """
    kept = torch.where(real[:, None, :, None], attended.float(), 0.0)
    return _by_row(kept.abs_().sum(dim=2), kv_heads)


def released_query_score(seen: LayerActivations, real: Tensor) -> Tensor:
    """Σ_ij (softmax(S − q̃_d k̃_dᵀ) − P)_ij² of query-head coordinate (h, d) -> (B, H·D).

    A cap bends S before the product is subtracted. real: (B, T) bool.
    """
    return _shared_score(packed(seen, real)).flatten(1)


def released_key_score(seen: LayerActivations, real: Tensor) -> Tensor:
    """The query score, by row of k_proj -> (B, G·D). real: (B, T) bool."""
    return _by_row(_shared_score(packed(seen, real)), seen.key.shape[1])


def _by_row(score: Tensor, kv_heads: int) -> Tensor:
    """Scores on the repeated axis (B, H, D) -> (B, G·D): row r has the largest of n·r … n·r+n−1."""
    group = score.shape[1] // kv_heads
    return score.flatten(1).view(len(score), -1, group).amax(dim=2)


def _shared_score(seen: LayerActivations) -> Tensor:
    """(B, H, D), of packed activations."""
    batch, heads, tokens, dim = seen.query.shape
    key = seen.key.repeat_interleave(heads // seen.key.shape[1], dim=1).flatten(0, 1)
    query = seen.query.flatten(0, 1)
    per_head = seen.visible.shape[1] == heads
    prompts = torch.arange(batch, device=query.device).repeat_interleave(heads)
    nothing = torch.zeros_like(key)
    removals = Removals(
        query=(query * seen.scale).unsqueeze(1),
        key=key.unsqueeze(1),
        visible=seen.visible.reshape(-1, 1, tokens, tokens),
        visible_of=torch.arange(batch * heads, device=query.device) if per_head else prompts,
        on_rows=(-query.unsqueeze(1), nothing.unsqueeze(1)),
        on_columns=(key, nothing),
        mixing=None,
        softcap=seen.softcap,
        shift_capped=False,
    )
    return change_norms(removals).square_().view(batch, heads, dim)
