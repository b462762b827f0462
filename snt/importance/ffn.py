"""Feed-forward neurons, exactly (Zhao et al., ICLR 2025, equation 4, with the output weight)."""

from __future__ import annotations

import torch
from torch import Tensor


def ffn_importance(middle: Tensor, down_norms: Tensor, real: Tensor) -> Tensor:
    """‖block(x) without i − block(x)‖ for every feed-forward neuron i.

    Removing neuron i takes the rank-one term middle[:, i] · W_down[:, i]ᵀ out of the block's
    output, so the norm of the change is the product of the two norms.

    middle: (B, R, F), what enters the down projection. down_norms: (F,), column norms of the down
    projection. real: (B, R) bool, False at padding. Returns (B, F) float32.
    """
    # A NaN at a padded position must not reach a real prompt, so padding is replaced, not scaled.
    kept = torch.where(real.unsqueeze(-1), middle.float(), 0.0)
    # Not vector_norm: over an axis that is not the last it takes four times as long.
    return (kept * kept).sum(dim=1).sqrt_() * down_norms


def column_norms(weight: Tensor) -> Tensor:
    """(d_out, F) weight of a down projection -> (F,) float32 column norms."""
    norms: Tensor = torch.linalg.vector_norm(weight.float(), dim=0)
    return norms
