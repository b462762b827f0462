"""Equations (4) to (6) of Zhao et al., ICLR 2025, as printed: attention without output projection.

Feed-forward neurons are as in `snt.importance.ffn`. A value neuron's importance is the norm of what
its coordinate brings to the attention output; a query or key neuron's is the norm of the change of
the attention probabilities. Neither passes through the output projection, so the kinds have
different units and share no threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snt.backend import LayerActivations
from snt.importance.attention_change import change_norms
from snt.importance.packing import packed
from snt.importance.query_key import key_removals, norms_of, query_removals


def paper_query_importance(seen: LayerActivations, real: Tensor) -> Tensor:
    """‖P'_h − P_h‖_F of query neuron (h, d) -> (B, H·D) float32.

    P' is the softmax of the logits that the model has without the coordinate. Where a norm runs
    over all heads, all heads' probabilities change, and all count. real: (B, R) bool.
    """
    return norms_of(query_removals(packed(seen, real), None), change_norms, len(real))


def paper_key_importance(seen: LayerActivations, real: Tensor) -> Tensor:
    """√Σ_h ‖P'_h − P_h‖_F² over the query heads of group g, of key neuron (g, d) -> (B, G·D).

    That is the Frobenius norm of the change of all the attention that reads the key head.
    real: (B, R) bool.
    """
    return norms_of(key_removals(packed(seen, real), None), change_norms, len(real))


def paper_value_importance(attended: Tensor, kv_heads: int, real: Tensor) -> Tensor:
    """√Σ_h ‖(P_h V_g)[:, d]‖² over the query heads of group g, of value neuron (g, d) -> (B, G·D).

    attended: (B, H, R, D), each query head's attention output. real: (B, R) bool.
    """
    batch, _, _, dim = attended.shape
    kept = torch.where(real[:, None, :, None], attended.float(), 0.0)
    by_head = (kept * kept).sum(dim=2).view(batch, kv_heads, -1, dim)
    return by_head.sum(dim=2).sqrt_().reshape(batch, kv_heads * dim)
