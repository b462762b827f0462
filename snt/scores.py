"""Mergeable accumulators of a detection: what one pass over the prompts keeps of every neuron.

Minimum importance (the paper's rule needs it), worst rank within layer and kind (the released
code's rule needs it) and a histogram of log-rank (for "in at least 95% of prompts", and for the
contrast of two corpora). Each merges associatively, so shards and resumed runs agree to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isqrt

import numpy as np
import torch
from torch import Tensor

from snt.errors import MismatchError

BINS = 40  # Two per octave: ranks up to a million neurons per layer and kind.

Place = tuple[int, str]  # (layer, kind)


@dataclass(frozen=True)
class NeuronScores:
    """One layer and kind: minimum (n,) float32, worst_rank (n,) int32, histogram (n, BINS).

    Rank 0 is the most important neuron of its layer and kind; ties go to the lower index. The
    histogram's integers are as narrow as its counts allow: with the layers of a model it is all
    that grows where one layer is in memory at a time.
    """

    minimum: Tensor
    worst_rank: Tensor
    histogram: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "histogram", self.histogram.to(_counts_of(self.prompts)))

    @staticmethod
    def of(importance: Tensor) -> NeuronScores:
        """Scores of a batch: importance (B, n), finite, B ≥ 1."""
        importance = importance.float().cpu()
        batch, size = importance.shape
        order = _descending(importance)
        ranks = torch.arange(size, dtype=torch.int32)
        rank = torch.empty(batch, size, dtype=torch.int32)
        rank.scatter_(1, order, ranks.expand(batch, -1))
        entries = (order * BINS + _bins(size)).flatten()
        histogram = torch.zeros(size * BINS, dtype=torch.int32)
        histogram.index_add_(0, entries, torch.ones_like(entries, dtype=torch.int32))
        return NeuronScores(importance.amin(dim=0), rank.amax(dim=0), histogram.view(size, BINS))

    def merge(self, other: NeuronScores) -> NeuronScores:
        """The scores of both sets of prompts together."""
        if self.minimum.shape != other.minimum.shape:
            raise MismatchError(
                f"scores of {len(self.minimum)} and {len(other.minimum)} neurons do not merge; "
                "both must come from the same model"
            )
        return NeuronScores(
            torch.minimum(self.minimum, other.minimum),
            torch.maximum(self.worst_rank, other.worst_rank),
            self.histogram.int() + other.histogram,
        )

    @property
    def prompts(self) -> int:
        """Prompts seen; every neuron has one rank per prompt."""
        return int(self.histogram[0].sum()) if len(self.histogram) else 0

    def rank_within(self, consistency: float) -> Tensor:
        """(n,) a rank that at least `consistency` of the prompts do not exceed, as int64.

        1.0 gives the worst rank exactly; below it the answer is the upper edge of a histogram bin.
        """
        if consistency >= 1.0:
            return self.worst_rank.long()
        needed = ceil(consistency * self.prompts)
        first = (self.histogram.cumsum(dim=1) >= needed).int().argmax(dim=1)
        return torch.minimum(bin_upper_edge(first), self.worst_rank.long())

    def mean_log_rank(self) -> tuple[Tensor, Tensor]:
        """(n,) mean and variance over prompts of the log-rank bin number, float64."""
        bins = torch.arange(BINS, dtype=torch.float64)
        weights = self.histogram.double() / max(1, self.prompts)
        mean = weights @ bins
        return mean, (weights @ bins.square() - mean.square()).clamp_min(0.0)


@dataclass(frozen=True)
class Scores:
    """A whole detection: scores per (layer, kind)."""

    places: Mapping[Place, NeuronScores]

    def merge(self, other: Scores) -> Scores:
        """The union of places; a place that both hold is merged."""
        merged = dict(self.places)
        for place, scores in other.places.items():
            merged[place] = merged[place].merge(scores) if place in merged else scores
        return Scores(merged)


def _descending(importance: Tensor) -> Tensor:
    """Per row of (B, n) float32 the neurons' numbers, most important first, ties by number.

    The bits of floats are ordered as they are, but for those of negative ones, which are turned
    round. With the number behind them one sort of distinct whole numbers does it; NumPy's is ten
    times as fast as a stable one of floats here.
    """
    # Adding zero turns −0.0 into 0.0.
    bits = (importance + 0.0).view(torch.int32)
    bits = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys = (bits.neg() << 32) + torch.arange(importance.shape[1])
    return torch.from_numpy(np.sort(keys.numpy(), axis=1)) & 0xFFFFFFFF


def _counts_of(prompts: int) -> torch.dtype:
    """The narrowest integer that counts so many."""
    wide_enough = (one for one in (torch.uint8, torch.int16) if prompts <= torch.iinfo(one).max)
    return next(wide_enough, torch.int32)


@lru_cache(maxsize=16)
def _bins(size: int) -> Tensor:
    """(size,) the bin of every rank."""
    return rank_bin(torch.arange(size))


def rank_bin(rank: Tensor) -> Tensor:
    """Histogram bin of a rank: floor(2 · log2(rank + 1)), computed on integers."""
    edges = _upper_edges(rank.device)
    return torch.searchsorted(edges, rank.long())


def bin_upper_edge(number: Tensor) -> Tensor:
    """Largest rank in a bin, int64; empty bins at the fine end share their neighbour's edge."""
    return _upper_edges(number.device)[number]


def _upper_edges(device: torch.device) -> Tensor:
    # Floating log2 differs between devices near the edges; integers do not. Bin b ends with the
    # largest rank r for which (r + 1)² < 2^(b + 1).
    edges = [isqrt(2 ** (b + 1) - 1) - 1 for b in range(BINS)]
    return torch.tensor(edges, device=device)
