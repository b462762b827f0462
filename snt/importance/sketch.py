"""Attention values in few numbers: leading directions, and what they leave of the diagonal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snt.importance.removals import Removals

# Where less than this share of the largest diagonal entry is left, it is rounding.
_ROUNDING = 1e-6
_TINY = 1e-30


@dataclass(frozen=True)
class Values:
    """Values through their head's output weights, M, ready to be approximated.

    Rows of M are (head, position) pairs. What all positions share is taken out: it moves nothing,
    since changes of attention sum to zero. value: (U, 1 or m, T, D), without it. grams: the Gram
    matrices F Fᵀ of the output weights, (G, m·D, m·D). through: (U, m, T, D), values times their
    own head's block. diagonal: (U, m, T), the squared norms of M's rows. mass: (U, m, T), the
    attention that a position gets.
    """

    value: Tensor
    grams: Tensor
    through: Tensor
    diagonal: Tensor
    mass: Tensor

    @staticmethod
    def of(removals: Removals, mass: Tensor) -> Values:
        mixing = removals.mixing
        if mixing is None:
            raise ValueError("an estimate needs values and the Gram matrices of the output weight")
        value = mixing.value
        shares = mass if value.shape[1] == mass.shape[1] else mass.sum(dim=1, keepdim=True)
        shares = shares / shares.sum(dim=2, keepdim=True).clamp_min(_TINY)
        value = value - shares.unsqueeze(-2) @ value
        heads, dim, groups = mass.shape[1], value.shape[-1], len(mixing.factors)
        blocks = mixing.factors.view(groups, heads, dim, heads, dim)
        own = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        by_group = value.view(-1, groups, *value.shape[1:])
        if value.shape[1] == 1:
            through = torch.einsum("bgtd,gmde->bgmte", by_group[:, :, 0], own).flatten(0, 1)
        else:
            through = torch.einsum("bgmtd,gmde->bgmte", by_group, own).flatten(0, 1)
        diagonal = (through * value).sum(dim=-1).clamp_min_(0.0)
        return Values(value, mixing.factors, through, diagonal, mass)


def sketch(values: Values, rank: int, separate: bool) -> tuple[Tensor, Tensor]:
    """M Mᵀ ≈ L Lᵀ + diag(κ): L (U, m, T, r) and κ (U, m, T), by pivoted Cholesky.

    Where heads are separate each head has pivots of its own, and no products with other heads. The
    next pivot is the pair with the largest κ, weighed by the attention that the position gets.
    """
    units, heads, tokens = values.diagonal.shape
    rest = values.diagonal.clone()
    over = (2,) if separate else (1, 2)
    smallest = rest.amax(dim=over, keepdim=True) * _ROUNDING + _TINY
    directions = rest.new_zeros(units, heads, tokens, rank)
    for at in range(rank):
        weighed = rest * values.mass
        if separate:
            pivot = weighed.argmax(dim=2, keepdim=True)
            row, left = _own_row(values, pivot), rest.gather(2, pivot)
            before = directions.take_along_dim(pivot.unsqueeze(-1), dim=2)
        else:
            pivot = weighed.flatten(1).argmax(dim=1, keepdim=True)
            row = _joint_row(values, pivot)
            left = rest.flatten(1).gather(1, pivot).unsqueeze(-1)
            before = directions.flatten(1, 2).take_along_dim(pivot.unsqueeze(-1), dim=1)
            before = before.unsqueeze(1)
        if at:
            row = row - (directions[..., :at] @ before[..., :at].mT).squeeze(-1)
        row *= torch.where(left > smallest, left, torch.inf).rsqrt_()
        directions[..., at] = row
        rest = rest.addcmul_(row, row, value=-1.0).clamp_min_(0.0)
    return directions, rest


def _own_row(values: Values, pivot: Tensor) -> Tensor:
    """Products of each head's pivot (U, m, 1) with that head's positions -> (U, m, T)."""
    taken = values.through.take_along_dim(pivot.unsqueeze(-1), dim=2)
    return (values.value @ taken.mT).squeeze(-1)


def _joint_row(values: Values, pivot: Tensor) -> Tensor:
    """Products of a unit's pivot (U, 1), a (head, position), with all such pairs -> (U, m, T)."""
    units, heads, tokens = values.diagonal.shape
    groups, dim = len(values.grams), values.value.shape[-1]
    unit = torch.arange(units, device=pivot.device)
    head, position = pivot[:, 0] // tokens, pivot[:, 0] % tokens
    chosen = values.value[unit, head if values.value.shape[1] == heads else 0, position]
    # In its head's place, so that one product serves all units of a group.
    placed = chosen.new_zeros(units, heads, dim)
    placed[unit, head] = chosen
    by_group = placed.view(-1, groups, heads * dim).transpose(0, 1)
    taken = (by_group @ values.grams).transpose(0, 1).reshape(units, heads, dim)
    if values.value.shape[1] == 1:
        return taken @ values.value[:, 0].mT
    return (values.value @ taken.unsqueeze(-1)).squeeze(-1)
