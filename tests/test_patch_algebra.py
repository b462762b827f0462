"""Sums and comparisons of deltas against dense weights, and what neither can be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snt.deltas import SliceKey
from snt.errors import RequestError
from snt.patch_algebra import (
    Slices,
    as_type,
    compared,
    conflicts,
    crossed,
    disjoint,
    scaled,
    stacked,
)

OUT, IN = 5, 4
KEYS = sorted(
    slice_key
    for layer in (0, 1)
    for module in "mn"
    for slice_key in (SliceKey(layer, module, "rows"), SliceKey(layer, module, "cols"))
)
VALUES = st.integers(-3, 3)


@st.composite
def slices_of(draw: Any) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    """Slices of (5, 4) weights with small whole numbers, so that sums are exact in any order."""
    made = {}
    for key in draw(st.sets(st.sampled_from(KEYS))):
        size, other = (OUT, IN) if key.axis == "rows" else (IN, OUT)
        at = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
        count = len(at) * other
        values = torch.tensor(draw(st.lists(VALUES, min_size=count, max_size=count)))
        shape = (len(at), other) if key.axis == "rows" else (other, len(at))
        made[key] = (torch.tensor(at, dtype=torch.int32), values.float().reshape(shape))
    return made


def _dense(slices: Slices) -> dict[tuple[int, str], Tensor]:
    found = {(layer, module): torch.zeros(OUT, IN) for layer in (0, 1) for module in "mn"}
    for key, (at, delta) in slices.items():
        found[key.layer, key.module].index_add_(0 if key.axis == "rows" else 1, at, delta)
    return found


def _trained(slices: Slices) -> dict[tuple[int, str], Tensor]:
    """Which entries a patch trains, their deltas zero or not."""
    ones = {key: (at, torch.ones_like(delta)) for key, (at, delta) in slices.items()}
    return {place: weight > 0 for place, weight in _dense(ones).items()}


@settings(max_examples=60, deadline=None)
@given(slices_of(), slices_of(), slices_of())
def test_stacked_is_the_sum_of_dense_weights(one: Slices, two: Slices, three: Slices) -> None:
    a, b, c = (_dense(slices) for slices in (one, two, three))
    total = stacked(stacked(one, two), three)
    for place, weight in _dense(total).items():
        assert torch.equal(weight, a[place] + b[place] + c[place])
    for at, _ in total.values():
        assert at.dtype == torch.int32 and bool((at[1:] > at[:-1]).all())
    assert total.keys() == {key for slices in (one, two, three) for key in slices}


@settings(max_examples=60, deadline=None)
@given(slices_of(), slices_of())
def test_first_and_last_keep_one_patch_of_shared_entries(one: Slices, two: Slices) -> None:
    a, b, mine, theirs = _dense(one), _dense(two), _trained(one), _trained(two)
    first, last = _dense(stacked(one, two, "first")), _dense(stacked(one, two, "last"))
    for place in a:
        assert torch.equal(first[place], torch.where(mine[place], a[place], b[place]))
        assert torch.equal(last[place], torch.where(theirs[place], b[place], a[place]))
    shared = sum(int((mine[place] & theirs[place]).sum()) for place in a)
    assert bool(conflicts(one, two)) == bool(shared)


@settings(max_examples=60, deadline=None)
@given(slices_of(), slices_of())
def test_comparison_is_that_of_dense_weights(one: Slices, two: Slices) -> None:
    a, b = (torch.cat([w.double().flatten() for w in _dense(s).values()]) for s in (one, two))
    found = compared(one, two)["all"]
    assert (found.only_first, found.only_second, found.both) == (
        int(((a != 0) & (b == 0)).sum()),
        int(((a == 0) & (b != 0)).sum()),
        int(((a != 0) & (b != 0)).sum()),
    )
    assert found.norm_first == pytest.approx(float(a.norm()))
    assert found.norm_second == pytest.approx(float(b.norm()))
    assert found.norm_difference == pytest.approx(float((a - b).norm()))
    if found.cosine is None:
        assert not a.any() or not b.any()
    else:
        assert found.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-12)
    assert compared(one, one)["all"].norm_difference == 0


@settings(max_examples=30, deadline=None)
@given(slices_of())
def test_crossed_slices_hold_the_whole_change_and_disjoint_ones_hold_it_once(one: Slices) -> None:
    dense = _dense(one)
    for key, (at, delta) in crossed(one).items():
        weight = dense[key.layer, key.module]
        assert torch.equal(delta, weight[at.long()] if key.axis == "rows" else weight[:, at.long()])
    once = disjoint(one)
    assert all(torch.equal(weight, dense[place]) for place, weight in _dense(once).items())
    squares = sum(float(delta.square().sum()) for _, delta in once.values())
    assert squares == sum(float(weight.square().sum()) for weight in dense.values())


def test_conflicts_are_named() -> None:
    def rows(*at: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(at, dtype=torch.int32), torch.ones(len(at), IN)

    key, other = SliceKey(3, "mlp.up_proj", "rows"), SliceKey(3, "mlp.up_proj", "cols")
    columns = (torch.tensor([2], dtype=torch.int32), torch.ones(OUT, 1))
    (shared,) = conflicts({key: rows(0, 1, 2, 3)}, {key: rows(0, 1, 2, 3, 4)})
    assert str(shared) == "layers.3.mlp.up_proj: 4 rows (0, 1, 2, …)"
    (crossing,) = conflicts({other: columns}, {key: rows(1, 4)})
    assert str(crossing).endswith("2 entries where rows cross columns ((1, 2), (4, 2))")
    assert not conflicts({key: rows(0)}, {key: rows(1)})


def test_three_patches_add_up_in_any_order_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    key, at = SliceKey(0, "m", "rows"), torch.arange(OUT, dtype=torch.int32)
    parts = [
        as_type({key: (at, torch.randn(OUT, IN, generator=draw))}, torch.float64) for _ in range(3)
    ]
    sums = [
        as_type(stacked(stacked(parts[x], parts[y]), parts[z]), torch.float32)[key][1]
        for x, y, z in ((0, 1, 2), (2, 0, 1), (1, 2, 0))
    ]
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])


@pytest.mark.parametrize("scale", [-1e-9, -1.0, 2.001, float("nan"), float("inf")])
def test_no_scale_reverses_or_overdoes(scale: float) -> None:
    with pytest.raises(RequestError, match="takes safety out"):
        scaled({}, scale)


def test_scales_are_exact() -> None:
    key, at = SliceKey(0, "m", "rows"), torch.tensor([1], dtype=torch.int32)
    delta = torch.tensor([[0.1, -3.0, 0.0, 7.5]])
    for scale in (0.0, 0.5, 1.0, 2.0):
        assert torch.equal(scaled({key: (at, delta)}, scale)[key][1], delta * scale)
