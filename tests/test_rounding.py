"""What rounding keeps: counts, shares and norms, in one go or in parts."""

from __future__ import annotations

import pytest
import torch

from snt.rounding import Rounding


def _rounding(weight: torch.Tensor, delta: torch.Tensor) -> Rounding:
    made = Rounding()
    base = weight.to(torch.bfloat16)
    made.add(weight, base, delta, (weight + delta).to(torch.bfloat16))
    return made


def test_counts_and_norms() -> None:
    # bfloat16 steps by 2^-7 at 1: half a step is lost (ties to even), one and a half become two.
    weight = torch.ones(5)
    delta = torch.tensor([0.0, 2.0**-8, 2.0**-7, 1.5 * 2.0**-7, -0.5])
    kept = _rounding(weight, delta).result()
    assert (kept.entries, kept.nonzero, kept.changed) == (5, 4, 3)
    assert kept.kept_share == 0.75 and kept.max_abs_delta == 0.5 and kept.rounding == 2.0**-8
    off = torch.tensor([2.0**-8, 2.0**-8])
    assert kept.relative_error == pytest.approx(float(off.norm() / delta.norm()))


def test_parts_merge_to_the_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, delta = torch.randn(2, 40, generator=draw)
    delta = 0.01 * delta
    first, second = (_rounding(weight[at], delta[at]) for at in (slice(0, 13), slice(13, 40)))
    whole = _rounding(weight, delta).result()
    first.merge(second)
    merged = first.result()
    assert merged.relative_error == pytest.approx(whole.relative_error)
    assert (merged.entries, merged.changed, merged.rounding) == (
        whole.entries,
        whole.changed,
        whole.rounding,
    )


def test_nothing_and_what_is_no_number() -> None:
    nothing = Rounding().result()
    assert (nothing.entries, nothing.kept_share, nothing.relative_error) == (0, 1.0, 0.0)
    weight = torch.tensor([float("nan"), 1.0])
    assert _rounding(weight, torch.tensor([0.0, 1.0])).result().kept_share == 1.0
