"""Attention values in few numbers: leading directions, and what they leave of the diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from snt.importance.removals import Removals

# Where less than this share of the largest diagonal entry is left, it is rounding.
_ROUNDING = 1e-6
_TINY = 1e-30


def sketch(removals: Removals, rank: int, mass: Tensor) -> tuple[Tensor, Tensor]:
    """M Mᵀ ≈ L Lᵀ + diag(κ): L (U, m, T, r) and κ (U, m, T), by pivoted Cholesky.

    Rows of M, values through their head's output weights, are (head, position) pairs; where heads
    are separate each head has pivots of its own. The next pivot is the pair with the largest κ,
    weighed by `mass` (U, m, T), the attention that the position gets. What all positions share is
    taken out first: it moves nothing, since changes of attention sum to zero.
    """
    mixing = removals.mixing
    if mixing is None:
        raise ValueError("an estimate needs the values and the Gram matrices of the output weight")
    units, heads, tokens, _ = removals.shape
    value = mixing.value
    shares = mass if value.shape[1] == heads else mass.sum(dim=1, keepdim=True)
    shares = shares / shares.sum(dim=2, keepdim=True).clamp_min(_TINY)
    value = value - shares.unsqueeze(-2) @ value
    dim, groups = value.shape[-1], len(mixing.factors)
    blocks = mixing.factors.view(groups, heads, dim, heads, dim)
    if not removals.separate:
        return _pivoted(value, _through(value, blocks), mass, rank)
    own = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).unsqueeze(3)
    alone = (units * heads, 1, tokens)
    directions, rest = _pivoted(
        value.expand(-1, heads, -1, -1).reshape(*alone, dim),
        _through(value, own).reshape(*alone, 1, dim),
        mass.reshape(alone),
        rank,
    )
    return directions.view(units, heads, tokens, rank), rest.view(units, heads, tokens)


def _through(value: Tensor, blocks: Tensor) -> Tensor:
    """G_hkᵀ v_j of every head h, position j and head k.

    value: (U, 1 or m, T, D), blocks: (G, m, D, k, D) with U a multiple of G -> (U, m, T, k, D).
    """
    by_group = value.reshape(-1, len(blocks), *value.shape[1:])
    if value.shape[1] == 1:
        return torch.einsum("bgtd,gmdke->bgmtke", by_group[:, :, 0], blocks).flatten(0, 1)
    return torch.einsum("bgmtd,gmdke->bgmtke", by_group, blocks).flatten(0, 1)


def _pivoted(value: Tensor, through: Tensor, mass: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Of every unit's Gram matrix v_hjᵀ G_hk v_ki: L (U, m, T, r) and κ (U, m, T)."""
    units, heads, tokens, _, _ = through.shape
    own = through.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    rest = (own * value).sum(dim=-1).clamp_min_(0.0)
    smallest = rest.amax(dim=(1, 2)) * _ROUNDING + _TINY
    directions = rest.new_zeros(units, heads, tokens, rank)
    unit = torch.arange(units, device=rest.device)
    for at in range(rank):
        pivot = (rest * mass).flatten(1).argmax(dim=1)
        head, position = pivot // tokens, pivot % tokens
        taken = through[unit, head, position]
        if value.shape[1] == 1:
            row = torch.bmm(taken, value[:, 0].mT)
        else:
            row = (value @ taken.unsqueeze(-1)).squeeze(-1)
        before = directions[unit, head, position, :at]
        if at:
            row = row - (directions[..., :at] @ before[:, None, :, None]).squeeze(-1)
        left = rest[unit, head, position]
        scale = torch.where(left > smallest, left, torch.inf).rsqrt_()
        directions[..., at] = row * scale[:, None, None]
        rest = (rest - directions[..., at].square()).clamp_min_(0.0)
    return directions, rest
