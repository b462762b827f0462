"""Query and key neurons, exactly, in parallel (method: Zhao et al., ICLR 2025, section 2).

Removing raw coordinate d of a query head lowers the scaled logits S_ij by Δ_ij, the product of the
coordinate alone, turned, with the keys; of a key head, those of every query head in its group. A
norm over queries or keys lets the other coordinates of its span grow by 1 + g: S' = (1 + g)(S − Δ),
so the shift is g·S − (1 + g)·Δ, with g of row i for queries and of column j for keys. Where the
norm runs over all heads, the other heads' logits become (1 + g)·S, and all heads' changes add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from snt.backend import LayerActivations, Turn
from snt.importance.attention_change import change_norms
from snt.importance.packing import packed
from snt.importance.projection import Mixing
from snt.importance.removals import Removals


def head_grams(output_weight: Tensor, groups: int) -> Tensor:
    """Gram matrix of each group's columns of W_o: (d_model, H·D) -> (groups, n·D, n·D)."""
    columns = output_weight.float().view(output_weight.shape[0], groups, -1).permute(1, 2, 0)
    return columns @ columns.mT


def head_factors(output_weight: Tensor, groups: int) -> Tensor:
    """Factor of the Gram matrix of `head_grams`: (d_model, H·D) -> (groups, n·D, r), r ≤ d_model.

    Stacked over the n = H / groups heads of a group, ‖Σ_h x_h W_o,hᵀ‖ = ‖[x_1 … x_n] F‖ with F the
    factor, so that d_model never appears again.
    """
    rows = output_weight.float().view(output_weight.shape[0], groups, -1).transpose(0, 1)
    # Not Cholesky: a pruned or duplicated head makes the Gram matrix singular.
    factors: Tensor = torch.linalg.qr(rows, mode="r").R
    return factors.mT.contiguous()


def query_importance(seen: LayerActivations, real: Tensor, factors: Tensor) -> Tensor:
    """‖block(x) without (h, d) − block(x)‖ for every query neuron -> (B, H·D) float32.

    real: (B, R) bool, False at padding. factors: from `head_factors`, with H groups, or with one
    where a norm runs over all heads of a query (`gain_span` "all").
    """
    return norms_of(query_removals(packed(seen, real), factors), change_norms, len(real))


def key_importance(seen: LayerActivations, real: Tensor, factors: Tensor) -> Tensor:
    """‖block(x) without (g, d) − block(x)‖ for every key neuron -> (B, G·D) float32.

    The heads of a group add before the norm is taken, so their cross terms count. factors: from
    `head_factors`, with G groups, or with one where a norm runs over all heads of a key. real: as
    for queries.
    """
    return norms_of(key_removals(packed(seen, real), factors), change_norms, len(real))


def norms_of(
    removals: Iterable[Removals], norms: Callable[[Removals], Tensor], prompts: int
) -> Tensor:
    """Norms (U, N) or (U, m, N) of removals side by side -> (B, neurons)."""
    # Units come prompt by prompt, and the parts in the order of the neurons' index.
    return torch.cat([norms(some).reshape(prompts, -1) for some in removals], dim=1)


def query_removals(
    seen: LayerActivations, factors: Tensor | None, by_group: bool = False
) -> Iterator[Removals]:
    """Packed activations -> removals whose (units, neurons), side by side, make (B, H·D).

    Without factors the removals have no mixing: what changes is the attention itself. By group, a
    unit is the separate query heads of a key head, and so are the factors.
    """
    batch, heads, _, dim = seen.query.shape
    groups = seen.key.shape[1]
    group = heads // groups
    query, value = seen.query * seen.scale, seen.value
    alone, gain = seen.query_raw * -seen.scale, seen.query_gain
    rows = _turned_alone(alone if gain is None else alone * (1.0 + gain), seen.turn)
    columns = _centred(_both_lanes(seen.key, seen.turn), seen)
    over_all = gain is not None and seen.gain_span == "all"
    if by_group and not over_all:

        def grouped(whole: Tensor) -> Tensor:
            return whole.reshape(batch * groups, group, -1, dim)

        yield Removals(
            *(grouped(query), _alone(seen.key), *_visible(seen, groups)),
            (grouped(rows[0]), grouped(rows[1])),
            (columns[0].flatten(0, 1), columns[1].flatten(0, 1)),
            _mixing(_alone(value), factors),
            row_gain=None if gain is None else grouped(gain),
            softcap=seen.softcap,
            separate=True,
        )
        return
    key = _repeated(seen.key, group)
    columns = (_repeated(columns[0], group), _repeated(columns[1], group))
    if gain is not None and seen.gain_span == "all":
        for head in range(heads):
            yield Removals(
                *(query, key, *_visible(seen, 1)),
                (rows[0][:, head : head + 1], rows[1][:, head : head + 1]),
                (columns[0][:, head], columns[1][:, head]),
                _mixing(_repeated(value, group), factors),
                own=(head, head + 1),
                row_gain=gain[:, head],
                softcap=seen.softcap,
            )
        return
    yield Removals(
        *(_alone(query), _alone(key), *_visible(seen, heads)),
        (_alone(rows[0]), _alone(rows[1])),
        (columns[0].flatten(0, 1), columns[1].flatten(0, 1)),
        _mixing(_alone(_repeated(value, group)), factors),
        row_gain=None if gain is None else gain.flatten(0, 1),
        softcap=seen.softcap,
    )


def key_removals(seen: LayerActivations, factors: Tensor | None) -> Iterator[Removals]:
    """Packed activations -> removals whose (units, neurons), side by side, make (B, G·D).

    Without factors the removals have no mixing: what changes is the attention itself.
    """
    batch, heads, _, dim = seen.query.shape
    groups = seen.key.shape[1]
    group = heads // groups
    query, gain = seen.query * seen.scale, seen.key_gain
    rows = _both_lanes(query, seen.turn)
    alone = -seen.key_raw if gain is None else -seen.key_raw * (1.0 + gain)
    columns = _centred(_turned_alone(alone, seen.turn), seen)
    if gain is not None and seen.gain_span == "all":
        for at in range(groups):
            mine = slice(at * group, (at + 1) * group)
            yield Removals(
                *(query, _repeated(seen.key, group), *_visible(seen, 1)),
                (rows[0][:, mine], rows[1][:, mine]),
                (columns[0][:, at], columns[1][:, at]),
                _mixing(_repeated(seen.value, group), factors),
                own=(mine.start, mine.stop),
                column_gain=gain[:, at],
                softcap=seen.softcap,
            )
        return

    def grouped(whole: Tensor) -> Tensor:
        return whole.reshape(batch * groups, group, -1, dim)

    yield Removals(
        *(grouped(query), _alone(seen.key), *_visible(seen, groups)),
        (grouped(rows[0]), grouped(rows[1])),
        (columns[0].flatten(0, 1), columns[1].flatten(0, 1)),
        _mixing(_alone(seen.value), factors),
        column_gain=None if gain is None else gain.flatten(0, 1),
        softcap=seen.softcap,
    )


def attention_alone(seen: LayerActivations, factors: Tensor | None) -> Removals:
    """Packed activations -> their attention by key head with nothing to remove: no neurons."""
    batch, heads, rows, dim = seen.query.shape
    groups, columns = seen.key.shape[1], seen.key.shape[2]
    nothing = seen.query.new_zeros(batch * groups, 1, rows, 0)
    none = seen.query.new_zeros(batch * groups, columns, 0)
    query = (seen.query * seen.scale).reshape(batch * groups, heads // groups, rows, dim)
    return Removals(
        *(query, _alone(seen.key), *_visible(seen, groups)),
        (nothing, nothing),
        (none, none),
        _mixing(_alone(seen.value), factors),
        softcap=seen.softcap,
    )


def _turned_alone(raw: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
    """Each coordinate without the others, turned: its entries at d and at its partner.

    raw: (B, ·, R, D) before the rotary embedding, of the last R positions. Two of its shape.
    """
    last = turn.own.shape[1] - raw.shape[2]
    return raw * turn.own[:, None, last:], raw * turn.cross[:, None, last:]


def _both_lanes(whole: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
    """Turned vectors' entries at d and at its partner: (B, ·, T, D) -> two of its shape."""
    order = turn.partner.tolist()
    starts = [at for at, to in enumerate(order) if at == 0 or to != order[at - 1] + 1]
    if len(starts) > 4:
        return whole, whole[..., turn.partner]
    # Partners in few runs, as in the usual layouts: copying slices is several times faster.
    ends = [*starts[1:], len(order)]
    runs = [whole[..., order[a] : order[b - 1] + 1] for a, b in zip(starts, ends, strict=True)]
    return whole, torch.cat(runs, dim=-1)


def _centred(columns: tuple[Tensor, Tensor], seen: LayerActivations) -> tuple[Tensor, Tensor]:
    """What all columns share moves no softmax; without it shifts are smaller.

    A cap bends logits, and there a common shift does move it.
    """
    if seen.softcap is not None:
        return columns
    tokens = seen.visible.any(dim=1).any(dim=1).sum(dim=1).clamp_min(1).view(-1, 1, 1, 1)
    first, second = (part - part.sum(dim=2, keepdim=True) / tokens for part in columns)
    return first, second


def _visible(seen: LayerActivations, units: int) -> tuple[Tensor, Tensor]:
    """What is visible, (W, 1 or m, R, T), and each of B·units units' row of it, (B·units,)."""
    batch, heads, *square = seen.visible.shape
    if heads == 1:
        index = torch.arange(batch, device=seen.visible.device)
        return seen.visible, index.repeat_interleave(units)
    by_unit = seen.visible.reshape(batch * units, -1, *square)
    return by_unit, torch.arange(batch * units, device=seen.visible.device)


def _repeated(heads: Tensor, group: int) -> Tensor:
    return heads if group == 1 else heads.repeat_interleave(group, dim=1)


def _alone(heads: Tensor) -> Tensor:
    """(B, U, ·, D) -> (B·U, 1, ·, D)."""
    return heads.flatten(0, 1).unsqueeze(1)


def _mixing(value: Tensor, factors: Tensor | None) -> Mixing | None:
    """Units come prompt by prompt, and within each in the order of the factors."""
    if factors is None:
        return None
    order = torch.arange(len(value), device=value.device) % len(factors)
    return Mixing(value, factors, order)
