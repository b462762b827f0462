"""Query and key neurons, exactly, in parallel (method: Zhao et al., ICLR 2025, section 2).

Removing coordinate d of a query head lowers the logits by Δ_ij; of a key head, those of every query
head in its group. With A = P∘expm1(−Δ) and z = row sums of A, the new attention minus the old is
(A − zP)/(1 + z): one exponential per (neuron, i, j), and no cancellation when Δ is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snt.backend import LayerActivations

# Beyond this |Δ| the product form loses digits: 1 + z cancels when the mass of a row is moved away,
# A − zP where one position holds nearly all of it, and far beyond the exponential overflows.
_SAFE_SHIFT = 2.0
# Elements of one (neurons × rows × heads × columns) block: large enough that dispatching an
# operation costs little beside running it, small enough to stay near the cores.
_BLOCK = 1 << 19
# A block of rows i sees only the columns j ≤ i; about three blocks save most of the empty half.
_ROW_BLOCKS = 3


@dataclass(frozen=True)
class _Removal:
    """What the units (query heads, or key heads with their m query heads) of one prompt need.

    probabilities, logits: (U, m, T, T). on_rows: two (U, D, m, T) and on_columns: two
    (U, D, 1 or m, T), with Δ_ij = Σ on_rows_i · on_columns_j. mixed: (U, m, T, r), the values
    through the output projection, up to a rotation.
    """

    probabilities: Tensor
    logits: Tensor
    on_rows: tuple[Tensor, Tensor]
    on_columns: tuple[Tensor, Tensor]
    mixed: Tensor


def head_factors(output_weight: Tensor, groups: int) -> Tensor:
    """Factor of each group's output Gram matrix: (d_model, H·D) -> (groups, n·D, n·D).

    Stacked over the n = H / groups heads of a group, ‖Σ_h x_h W_o,hᵀ‖ = ‖[x_1 … x_n] F‖ with F the
    factor, so that d_model never appears again.
    """
    columns = output_weight.double().view(output_weight.shape[0], groups, -1).permute(1, 2, 0)
    # Eigenvectors rather than Cholesky: a pruned or duplicated head makes the matrix singular.
    values, vectors = torch.linalg.eigh(columns @ columns.mT)
    factors: Tensor = vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)
    return factors.float()


def query_importance(seen: LayerActivations, real: Tensor, factors: Tensor) -> Tensor:
    """‖block(x) without (h, d) − block(x)‖ for every query neuron -> (B, H·D) float32.

    real: (B, T) bool, False at padding. factors: (H, D, D), from `head_factors` with H groups.
    """
    if seen.softcap is not None or seen.query_gain is not None:
        return _general_importance(seen, real, factors, of_keys=False)
    heads = seen.query.shape[1]
    per_group = heads // seen.key.shape[1]
    rows = []
    for row, kept in enumerate(real):
        key = seen.key[row][:, kept].repeat_interleave(per_group, 0)
        value = seen.value[row][:, kept].repeat_interleave(per_group, 0)
        logits = _logits(seen, row, kept).unsqueeze(1)
        own = _own_terms(seen.query_raw[row][:, kept] * seen.scale, seen, row, kept)
        other = (_lanes(key), _lanes(key[..., seen.turn.partner]))
        mixed = (value @ factors).unsqueeze(1)
        removal = _Removal(logits.softmax(dim=-1), logits, own, other, mixed)
        rows.append(_importance(removal))
    return torch.stack(rows)


def key_importance(seen: LayerActivations, real: Tensor, factors: Tensor) -> Tensor:
    """‖block(x) without (g, d) − block(x)‖ for every key neuron -> (B, G·D) float32.

    The heads of a group add before the norm is taken, so their cross terms count.
    real: (B, T) bool, False at padding. factors: (G, n·D, n·D), from `head_factors` with G groups.
    """
    if seen.softcap is not None or seen.key_gain is not None:
        return _general_importance(seen, real, factors, of_keys=True)
    groups = seen.key.shape[1]
    rows = []
    for row, kept in enumerate(real):
        query = _by_group(seen.query[row][:, kept], groups)
        logits = _by_group(_logits(seen, row, kept), groups)
        own = _own_terms(seen.key_raw[row][:, kept] * seen.scale, seen, row, kept)
        turned = query[..., seen.turn.partner]
        other = (query.permute(0, 3, 1, 2), turned.permute(0, 3, 1, 2))
        by_head = factors.view(groups, query.shape[1], -1, factors.shape[-1])
        mixed = seen.value[row][:, kept].unsqueeze(1) @ by_head
        rows.append(_importance(_Removal(logits.softmax(dim=-1), logits, other, own, mixed)))
    return torch.stack(rows)


def _general_importance(
    seen: LayerActivations, real: Tensor, factors: Tensor, of_keys: bool
) -> Tensor:
    """Every field of `seen`, neuron by neuron in float64: plain, and slow.

    factors: of one group where the gain spans all heads, else as `query_importance` and
    `key_importance` take them. Returns (B, U·D) float32, U heads or key heads.
    """
    raw, gain = (seen.key_raw, seen.key_gain) if of_keys else (seen.query_raw, seen.query_gain)
    heads, units = seen.query.shape[1], raw.shape[1]
    per_group = heads // seen.key.shape[1]
    mine = heads // units
    rows = []
    for row, kept in enumerate(real):
        query = seen.query[row][:, kept].double()
        key = seen.key[row][:, kept].double().repeat_interleave(per_group, 0)
        value = seen.value[row][:, kept].double().repeat_interleave(per_group, 0)
        visible = seen.visible[row][:, kept][:, :, kept]
        own, cross = (t[row][kept].double() for t in (seen.turn.own, seen.turn.cross))
        logits = query @ key.mT * seen.scale

        def attend(some: Tensor, visible: Tensor = visible) -> Tensor:
            if seen.softcap is not None:
                some = seen.softcap * (some / seen.softcap).tanh()
            return some.masked_fill(~visible, -torch.inf).softmax(dim=-1)

        before = attend(logits)
        other = query if of_keys else key
        found = []
        for unit in range(units):
            members = slice(unit * mine, (unit + 1) * mine)
            for d, partner in enumerate(seen.turn.partner.tolist()):
                alone = raw[row, unit, kept, d].double() * seen.scale
                read = other[members, :, (d, partner)]
                turned = torch.stack([alone * own[:, d], alone * cross[:, d]])
                removed = torch.einsum("lt,mul->mtu", turned, read)
                changed = logits.clone()
                changed[members] -= removed.mT if of_keys else removed
                if gain is not None:
                    growth = 1.0 + gain[row, unit, kept, d].double()
                    growth = growth if of_keys else growth.unsqueeze(-1)
                    scaled = slice(None) if seen.gain_span == "all" else members
                    changed[scaled] *= growth
                change = (attend(changed) - before) @ value
                if len(factors) == 1:
                    mixed = change.transpose(0, 1).flatten(1) @ factors[0].double()
                else:
                    mixed = change[members].transpose(0, 1).flatten(1) @ factors[unit].double()
                found.append(mixed.norm())
        rows.append(torch.stack(found).float())
    return torch.stack(rows)


def _by_group(heads: Tensor, groups: int) -> Tensor:
    """(H, T, ·) -> (G, n, T, ·)."""
    return heads.reshape(groups, -1, *heads.shape[1:])


def _logits(seen: LayerActivations, row: int, kept: Tensor) -> Tensor:
    """Masked attention logits of one prompt's real tokens -> (H, T, T)."""
    query, key = seen.query[row][:, kept], seen.key[row][:, kept]
    per_group = len(query) // len(key)
    logits = query @ key.repeat_interleave(per_group, 0).mT * seen.scale
    visible = seen.visible[row][:, kept][:, :, kept]
    return logits.masked_fill(~visible, torch.finfo(logits.dtype).min)


def _own_terms(
    raw: Tensor, seen: LayerActivations, row: int, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Coordinate d alone, turned: its entries at d and at its partner, two (U, D, 1, T).

    raw: (U, T, D) before the rotary embedding.
    """
    turn = seen.turn
    return _lanes(raw * turn.own[row][kept]), _lanes(raw * turn.cross[row][kept])


def _lanes(flat: Tensor) -> Tensor:
    """(U, T, D) -> (U, D, 1, T)."""
    return flat.mT.unsqueeze(2)


def _importance(removal: _Removal) -> Tensor:
    """Norms of the block's change for every neuron (u, d) -> (U·D,)."""
    units, dim = removal.on_columns[0].shape[:2]
    tokens = removal.mixed.shape[2]
    squared = removal.mixed.new_zeros(units, dim)
    factor = _lower_factor(removal.mixed)
    for low, high in _row_blocks(tokens, dim * removal.mixed.shape[1]):
        for some in _unit_chunks(removal, high - low, high):
            change = _attention_change(removal, some, low, high)
            change = change.flatten(3).flatten(1, 2) @ _of_columns(factor[some], removal, high)
            norms = torch.linalg.vector_norm(change.view(len(change), dim, -1), dim=2)
            squared[some] += norms.square()
    result = squared.sqrt()
    _redo_large(removal, result)
    return result.flatten()


def _attention_change(removal: _Removal, some: slice, low: int, high: int) -> Tensor:
    """P' − P of rows low to high, which see columns up to high -> (u, D, rows, m, high)."""
    (rows_1, rows_2), (columns_1, columns_2) = removal.on_rows, removal.on_columns

    def by_row(part: Tensor) -> Tensor:
        return part[some, :, :, low:high].transpose(2, 3).unsqueeze(-1)

    def by_column(part: Tensor) -> Tensor:
        return part[some, :, :, :high].unsqueeze(2)

    kept = removal.probabilities[some, :, low:high, :high].transpose(1, 2).unsqueeze(1)
    change = by_row(rows_1).neg() * by_column(columns_1)
    change.addcmul_(by_row(rows_2), by_column(columns_2), value=-1.0)
    change.expm1_().mul_(kept)
    total = change.sum(dim=-1, keepdim=True)
    change.addcmul_(total, kept, value=-1.0)
    return change.mul_((1.0 + total).reciprocal_())


def _redo_large(removal: _Removal, result: Tensor) -> None:
    """Neurons whose |Δ| may pass the safe bound, by the direct difference of two softmaxes."""
    dim, tokens = removal.on_columns[0].shape[1], removal.mixed.shape[2]
    large = _shift_bound(removal) > _SAFE_SHIFT
    step = max(1, _BLOCK // (removal.mixed.shape[1] * tokens * tokens))
    for unit in large.any(dim=1).nonzero().flatten().tolist():
        coordinates = large[unit].nonzero().flatten()
        for chosen in torch.split(coordinates, min(step, dim)):
            shift = removal.mixed.new_zeros(1)
            for rows, columns in zip(removal.on_rows, removal.on_columns, strict=True):
                shift = shift + rows[unit, chosen].unsqueeze(-1) * columns[unit, chosen].unsqueeze(
                    -2
                )
            changed = (removal.logits[unit] - shift).softmax(dim=-1) - removal.probabilities[unit]
            change = torch.einsum("chij,hjr->cir", changed, removal.mixed[unit])
            result[unit, chosen] = torch.linalg.vector_norm(change, dim=(1, 2))


def _shift_bound(removal: _Removal) -> Tensor:
    """An upper bound of |Δ| for every neuron -> (U, D), without forming Δ."""
    products = [
        rows.abs().amax(dim=3) * columns.abs().amax(dim=3)
        for rows, columns in zip(removal.on_rows, removal.on_columns, strict=True)
    ]
    return sum(products, torch.zeros_like(products[0])).amax(dim=2)


def _lower_factor(mixed: Tensor) -> Tensor:
    """(U, m, T, r) -> (U, T·m, s), position by position, with the same products of rows.

    Where T·m ≤ r the factor is square and lower triangular, so that the first rows need the first
    columns alone; where the values are linearly dependent it is `mixed` itself.
    """
    units, per_unit, tokens, width = mixed.shape
    stacked = mixed.transpose(1, 2).reshape(units, tokens * per_unit, width)
    if tokens * per_unit > width:
        return stacked
    double = stacked.double()
    lower, failed = torch.linalg.cholesky_ex(double @ double.mT)
    return stacked if bool(failed.any()) else lower.float()


def _of_columns(factor: Tensor, removal: _Removal, high: int) -> Tensor:
    """The factor's rows for columns below `high`, ordered (head, column) -> (u, m·high, s)."""
    per_unit, tokens = removal.mixed.shape[1:3]
    square = factor.shape[1] == factor.shape[2]
    width = high * per_unit if square else factor.shape[2]
    rows = factor[:, : high * per_unit, :width].reshape(-1, high, per_unit, width)
    return rows.transpose(1, 2).flatten(1, 2)


def _row_blocks(tokens: int, lanes: int) -> Iterator[tuple[int, int]]:
    """(low, high) of successive blocks of rows; `lanes` elements stand at each (row, column)."""
    step = min(-(-tokens // _ROW_BLOCKS), max(1, _BLOCK // (lanes * tokens)))
    for low in range(0, tokens, step):
        yield low, min(low + step, tokens)


def _unit_chunks(removal: _Removal, rows: int, columns: int) -> Iterator[slice]:
    units, dim = removal.on_columns[0].shape[:2]
    step = max(1, _BLOCK // (dim * removal.mixed.shape[1] * rows * columns))
    for start in range(0, units, step):
        yield slice(start, start + step)
