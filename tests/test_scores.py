"""Accumulators against brute force; merging in any order gives the same bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.errors import MismatchError
from snt.scores import BINS, NeuronScores, Scores, bin_upper_edge, rank_bin

importances = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 999))


def _batch(shape: tuple[int, int, int]) -> torch.Tensor:
    prompts, neurons, seed = shape
    # Few distinct values, so that ties are common.
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (prompts, neurons), generator=generator).float()


def _ranks(row: list[float]) -> list[int]:
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    return [order.index(i) for i in range(len(row))]


@given(importances)
def test_against_brute_force(shape: tuple[int, int, int]) -> None:
    batch = _batch(shape)
    scores = NeuronScores.of(batch)
    ranks = [_ranks(row) for row in batch.tolist()]
    for neuron in range(shape[1]):
        column = [row[neuron] for row in ranks]
        assert scores.minimum[neuron] == min(batch[:, neuron])
        assert scores.worst_rank[neuron] == max(column)
        counts = [sum(int(rank_bin(torch.tensor(r))) == b for r in column) for b in range(BINS)]
        assert scores.histogram[neuron].tolist() == counts
    assert scores.prompts == shape[0]


@given(importances, st.randoms())
def test_shards_merge_to_the_bit_in_any_order(shape: tuple[int, int, int], random: object) -> None:
    batch = _batch(shape)
    whole = NeuronScores.of(batch)
    parts = [NeuronScores.of(row.unsqueeze(0)) for row in batch]
    random.shuffle(parts)  # type: ignore[attr-defined]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    for name in ("minimum", "worst_rank", "histogram"):
        assert torch.equal(getattr(merged, name), getattr(whole, name))


def test_bins_are_the_floor_of_twice_the_logarithm() -> None:
    for rank in [*range(200), 4095, 4096, 14335, 999_999]:
        number = int(rank_bin(torch.tensor(rank)))
        assert math.isclose(number, 2 * math.log2(rank + 1), abs_tol=1.0)
        assert number <= 2 * math.log2(rank + 1) + 1e-9
        assert rank <= int(bin_upper_edge(torch.tensor(number)))


@given(importances, st.sampled_from([0.3, 0.5, 0.95, 1.0]))
def test_rank_within_covers_the_share(shape: tuple[int, int, int], share: float) -> None:
    batch = _batch(shape)
    scores = NeuronScores.of(batch)
    limit = scores.rank_within(share)
    ranks = torch.tensor([_ranks(row) for row in batch.tolist()])
    assert bool(((ranks <= limit).float().mean(dim=0) >= share - 1e-6).all())
    assert bool((limit <= scores.worst_rank).all())


def test_other_sizes_do_not_merge() -> None:
    one = NeuronScores.of(torch.rand(2, 3))
    with pytest.raises(MismatchError, match="3 and 4"):
        one.merge(NeuronScores.of(torch.rand(2, 4)))
    both = Scores({(0, "q"): one}).merge(Scores({(0, "q"): one, (1, "q"): one}))
    assert both.places[0, "q"].prompts == 4
    assert both.places[1, "q"].prompts == 2
