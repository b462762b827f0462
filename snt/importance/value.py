"""Value neurons, exactly: the change passes through the output projection, heads added first."""

from __future__ import annotations

import torch
from torch import Tensor


def value_importance(attended: Tensor, output_gram: Tensor, real: Tensor) -> Tensor:
    """‖block(x) without (g, d) − block(x)‖ for every value neuron (key/value head g, coordinate d).

    With a_h = P_h v_{g,d} and w_h = W_o[:, hD+d], the change is Σ_h a_h w_hᵀ over the query heads h
    of group g, so its squared norm is Σ_{h,h'} (a_h·a_h')(w_h·w_h').

    attended: (B, H, R, D), each query head's attention output P_h V_g. output_gram: (G, n, n, D),
    w_h·w_h' per coordinate (see `value_gram`). real: (B, R) bool. Returns (B, G·D) float32.
    """
    batch, _, tokens, dim = attended.shape
    groups, per_group = output_gram.shape[:2]
    kept = torch.where(real[:, None, :, None], attended.float(), 0.0)
    kept = kept.view(batch, groups, per_group, tokens, dim)
    products = torch.einsum("bgmtd,bgntd->bgmnd", kept, kept)
    squared = (products * output_gram).sum(dim=(2, 3))
    return squared.clamp_min(0.0).sqrt().reshape(batch, groups * dim)


def value_gram(output_weight: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """(d_model, H·D) output projection -> (G, n, n, D): w_h·w_h' per coordinate within a group."""
    columns = output_weight.float().view(output_weight.shape[0], kv_heads, -1, head_dim)
    return torch.einsum("ogmd,ognd->gmnd", columns, columns)
