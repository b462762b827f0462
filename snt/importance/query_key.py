"""Query and key neurons, exactly, in parallel (method: Zhao et al., ICLR 2025, section 2).

Removing coordinate d of a query head lowers the logits by Δ_ij; of a key head, those of every query
head in its group. With A = P∘expm1(−Δ) and z = row sums of A, the new attention minus the old is
(A − zP)/(1 + z): one exponential per (neuron, i, j), and no cancellation when Δ is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Beyond this |Δ| the product form loses digits: 1 + z cancels when the mass of a row is moved away,
# and far beyond it the exponential overflows.
_SAFE_SHIFT = 4.0
# Elements of one (neurons × T × T) block: it should stay in a core's cache.
_BLOCK = 1 << 19


@dataclass(frozen=True)
class Attention:
    """What one layer's attention computed for one batch, in float32.

    logits: (B, H, T, T) scaled and masked scores, −inf or very negative where masked.
    query_raw: (B, H, T, D) and key_raw: (B, G, T, D), before RoPE. query: (B, H, T, D) and
    key, value: (B, G, T, D), after it. cos, sin: (B, T, D), rotate-half layout. real: (B, T) bool.
    scale: the factor on query·key.
    """

    logits: Tensor
    query_raw: Tensor
    key_raw: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    cos: Tensor
    sin: Tensor
    real: Tensor
    scale: float


def head_factors(output_weight: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """Factor of each group's output Gram matrix: (d_model, H·D) -> (G, n·D, r).

    Stacked over the n heads of a group, ‖Σ_h x_h W_o,hᵀ‖ = ‖[x_1 … x_n] F‖ with F = head_factors,
    r = n·D, so that d_model never appears again.
    """
    columns = output_weight.double().view(output_weight.shape[0], kv_heads, -1).permute(1, 2, 0)
    gram = columns @ columns.mT
    # Eigenvectors rather than Cholesky: a pruned or duplicated head makes the matrix singular.
    values, vectors = torch.linalg.eigh(gram)
    factors: Tensor = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    return factors.float()


def rotated_parts(raw: Tensor, other: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """The two terms of (R_i e_d raw_id)·other_j for every d: coefficients and counterparts.

    R_i e_d has cos_i[d] at d and ±sin_i at its partner. raw, other, cos, sin: (T, D).
    Returns a, b (T, D) of position i and c, e (T, D) of position j with the product
    a_i[d]·c_j[d] + b_i[d]·e_j[d].
    """
    half = raw.shape[-1] // 2
    # rotate_half puts −x[d + half] at d < half and x[d − half] at d ≥ half.
    partner = torch.cat([other[..., half:], other[..., :half]], dim=-1)
    sine = torch.cat([sin[..., half:], -sin[..., :half]], dim=-1)
    return raw * cos, raw * sine, other, partner


def query_importance(attention: Attention, factors: Tensor) -> Tensor:
    """‖block(x) without (h, d) − block(x)‖ for every query neuron -> (B, H·D) float32.

    factors: (G, n·D, n·D) from `head_factors`.
    """
    batch, heads, tokens, dim = attention.query.shape
    per_group = heads // attention.key.shape[1]
    result = attention.query.new_empty(batch, heads, dim)
    probabilities = attention.logits.softmax(dim=-1)
    # A head's own block of the factor has rank D at most, so it is made D × D again.
    narrow = [_narrow(block) for group_factor in factors for block in group_factor.split(dim)]
    for row in range(batch):
        real = attention.real[row]
        for head in range(heads):
            group = head // per_group
            mixed = attention.value[row, group] @ narrow[head]
            a, b, c, e = rotated_parts(
                attention.query_raw[row, head] * attention.scale,
                attention.key[row, group],
                attention.cos[row],
                attention.sin[row],
            )
            p, logits = probabilities[row, head], attention.logits[row, head]
            step = max(1, _BLOCK // (tokens * tokens))
            for start in range(0, dim, step):
                chosen = slice(start, start + step)
                shift = _outer(a[:, chosen], c[:, chosen]) + _outer(b[:, chosen], e[:, chosen])
                change = _attention_change(p, logits, shift) @ mixed
                result[row, head, chosen] = _norm(change, real)
    return result.reshape(batch, heads * dim)


def key_importance(attention: Attention, factors: Tensor) -> Tensor:
    """‖block(x) without (g, d) − block(x)‖ for every key neuron -> (B, G·D) float32.

    The heads of a group add before the norm is taken, so their cross terms count.
    """
    batch, heads, tokens, dim = attention.query.shape
    groups = attention.key.shape[1]
    per_group = heads // groups
    result = attention.query.new_empty(batch, groups, dim)
    probabilities = attention.logits.softmax(dim=-1)
    step = max(1, _BLOCK // (tokens * tokens))
    for row in range(batch):
        real = attention.real[row]
        for group in range(groups):
            for start in range(0, dim, step):
                chosen = slice(start, start + step)
                change: Tensor | None = None
                for place in range(per_group):
                    head = group * per_group + place
                    mixed = (
                        attention.value[row, group]
                        @ factors[group, place * dim : (place + 1) * dim]
                    )
                    a, b, c, e = rotated_parts(
                        attention.key_raw[row, group] * attention.scale,
                        attention.query[row, head],
                        attention.cos[row],
                        attention.sin[row],
                    )
                    shift = _outer(c[:, chosen], a[:, chosen]) + _outer(e[:, chosen], b[:, chosen])
                    part = (
                        _attention_change(
                            probabilities[row, head], attention.logits[row, head], shift
                        )
                        @ mixed
                    )
                    change = part if change is None else change.add_(part)
                assert change is not None  # a group has at least one head
                result[row, group, chosen] = _norm(change, real)
    return result.reshape(batch, groups * dim)


def _narrow(factor: Tensor) -> Tensor:
    """(D, r) -> (D, D) with the same products of rows: F Fᵀ is kept."""
    if factor.shape[1] <= factor.shape[0]:
        return factor
    triangular: Tensor = torch.linalg.qr(factor.mT.double()).R
    return triangular.mT.float()


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """(T, n), (T, n) -> (n, T, T)."""
    return left.mT.unsqueeze(-1) * right.mT.unsqueeze(-2)


def _attention_change(probabilities: Tensor, logits: Tensor, shift: Tensor) -> Tensor:
    """softmax(logits − shift) − softmax(logits): (T, T), (T, T), (n, T, T) -> (n, T, T)."""
    change = torch.expm1(-shift).mul_(probabilities)
    total = change.sum(dim=-1, keepdim=True)
    change.addcmul_(total, probabilities, value=-1.0).div_(1.0 + total)
    large = shift.abs().amax(dim=(1, 2)) > _SAFE_SHIFT
    if bool(large.any()):
        change[large] = (logits - shift[large]).softmax(dim=-1) - probabilities
    return change


def _norm(change: Tensor, real: Tensor) -> Tensor:
    """(n, T, r), (T,) -> (n,): Frobenius norm over real positions."""
    kept = torch.where(real[None, :, None], change, 0.0)
    norms: Tensor = torch.linalg.vector_norm(kept, dim=(1, 2))
    return norms
