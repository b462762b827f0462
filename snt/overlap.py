"""How masks of one model overlap, beside what chance gives, and which neurons they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from snt.anatomy import KINDS
from snt.chance import Chance, chance_in_place
from snt.errors import MismatchError
from snt.file_facts import Share, by_kind_and_third, thirds_of
from snt.masks import NeuronMask
from snt.scores import Place

TOP = 10
Named = Mapping[str, NeuronMask]


@dataclass(frozen=True)
class Overlap:
    """Two masks: neurons in both, in either, and how many in both chance would give."""

    first: str
    second: str
    intersection: int
    union: int
    chance: Chance

    @property
    def iou(self) -> float:
        """Intersection over union; 1.0 for two empty masks."""
        return self.intersection / self.union if self.union else 1.0

    @property
    def expected(self) -> float:
        """Neurons in both by chance."""
        return self.chance.expected

    @property
    def ratio(self) -> float | None:
        """Intersection over what chance gives; None where chance gives nothing."""
        return self.chance.ratio(self.intersection)

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "first": self.first,
            "second": self.second,
            "intersection": self.intersection,
            "union": self.union,
            **asdict(self.chance),
            "iou": self.iou,
            "ratio": self.ratio,
            "distance": self.chance.distance(self.intersection),
        }


@dataclass(frozen=True)
class SharedNeuron:
    """A neuron of several masks. `score` is its smallest among the masks that hold it."""

    layer: int
    kind: str
    index: int
    masks: int
    score: float


@dataclass(frozen=True)
class Shared:
    """Neurons in at least `at_least` of `of` masks, by kind and by third of the layers.

    `chance` is that of all of them, `kind_chance` and `third_chance` those of the groups; `layers`
    holds per kind one count per layer. `top` are the best by score, empty where a mask has none.
    """

    at_least: int
    of: int
    neurons: int
    chance: Chance
    kinds: Mapping[str, Share]
    thirds: Mapping[str, Share]
    kind_chance: Mapping[str, Chance]
    third_chance: Mapping[str, Chance]
    layers: Mapping[str, tuple[int, ...]]
    top: tuple[SharedNeuron, ...]

    def as_json(self) -> dict[str, Any]:
        """All figures, the groups with their base rates."""
        return {
            "at_least": self.at_least,
            "of": self.of,
            "neurons": self.neurons,
            **asdict(self.chance),
            "ratio": self.chance.ratio(self.neurons),
            "kinds": _groups(self.kinds, self.kind_chance),
            "thirds": _groups(self.thirds, self.third_chance),
            "top": [asdict(neuron) for neuron in self.top],
        }


@dataclass(frozen=True)
class Comparison:
    """Masks by name: their sizes, the overlap of every two, and what several share.

    `shared` begins with the neurons of all masks; three or more masks have those of all but one
    too. One mask alone, or none, has neither overlaps nor shared neurons.
    """

    neurons: Mapping[str, int] = field(default_factory=dict)
    overlaps: tuple[Overlap, ...] = ()
    shared: tuple[Shared, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The masks, in order."""
        return tuple(self.neurons)

    def of(self, first: str, second: str) -> Overlap:
        """The overlap of two different masks, in either order."""
        return next(o for o in self.overlaps if {o.first, o.second} == {first, second})

    def as_json(self) -> dict[str, Any]:
        """Overlaps and shared neurons."""
        return {
            "overlaps": [overlap.as_json() for overlap in self.overlaps],
            "shared": [shared.as_json() for shared in self.shared],
        }


def compare(masks: Named) -> Comparison:
    """Compare masks. Raises MismatchError when they are for different models."""
    sizes = {name: len(mask) for name, mask in masks.items()}
    if len(masks) < 2:
        return Comparison(sizes)
    first, *others = masks
    for other in others:
        _check_one_model(first, masks[first], other, masks[other])
    overlaps = tuple(overlap_of(*a, *b) for a, b in combinations(masks.items(), 2))
    floors = [len(masks), *([len(masks) - 1] if len(masks) > 2 else [])]
    return Comparison(sizes, overlaps, tuple(shared_by(masks, floor) for floor in floors))


def overlap_of(first: str, mine: NeuronMask, second: str, theirs: NeuronMask) -> Overlap:
    """How two masks overlap. Raises MismatchError when they are for different models."""
    _check_one_model(first, mine, second, theirs)
    _, means, variances = _chances((mine, theirs), 2)
    both = len(mine.intersect(theirs))
    union = len(mine) + len(theirs) - both
    return Overlap(first, second, both, union, Chance.of(means, variances))


def shared_by(masks: Named, at_least: int) -> Shared:
    """The neurons in at least `at_least` of the masks, which are for one model."""
    held = list(masks.values())
    anatomy = held[0].anatomy
    places, means, variances = _chances(held, at_least)
    thirds = thirds_of(anatomy.layers)
    found = _in_at_least(held, places, at_least)
    layers = {
        kind: tuple(len(found.get((layer, kind), ())) for layer in range(anatomy.layers))
        for kind in KINDS
    }
    kinds, in_thirds = by_kind_and_third(anatomy, layers)
    where = np.array([layer for layer, _ in places], dtype=np.int64)
    what = np.array([kind for _, kind in places])
    return Shared(
        at_least,
        len(held),
        sum(map(len, found.values())),
        Chance.of(means, variances),
        kinds,
        in_thirds,
        {k: Chance.of(means[what == k], variances[what == k]) for k in KINDS},
        {
            name: Chance.of(means[inside], variances[inside])
            for name, (start, stop) in thirds.items()
            for inside in [(where >= start) & (where < stop)]
        },
        layers,
        _top(held, found),
    )


def _chances(
    masks: Sequence[NeuronMask], at_least: int
) -> tuple[list[Place], np.ndarray, np.ndarray]:
    """The places that any mask holds, with mean and variance by chance."""
    anatomy = masks[0].anatomy
    places = sorted({place for mask in masks for place in mask.neurons})
    counts = [np.array([len(mask.neurons.get(p, ())) for p in places]) for mask in masks]
    sizes = np.array([anatomy.size(kind) for _, kind in places])
    return places, *chance_in_place(counts, sizes, at_least)


def _in_at_least(
    masks: Sequence[NeuronMask], places: Sequence[Place], at_least: int
) -> dict[Place, dict[int, int]]:
    """Per place the indices that enough masks hold, each with how many do."""
    found = {}
    for place in places:
        every = torch.cat([mask.neurons[place] for mask in masks if place in mask.neurons])
        indices, times = torch.unique(every, return_counts=True)
        enough = times >= at_least
        kept = dict(zip(indices[enough].tolist(), times[enough].tolist(), strict=True))
        if kept:
            found[place] = kept
    return found


def _top(
    masks: Sequence[NeuronMask], found: Mapping[Place, Mapping[int, int]]
) -> tuple[SharedNeuron, ...]:
    if any(place not in mask.scores for mask in masks for place in mask.neurons):
        return ()
    best = []
    for place, indices in found.items():
        lowest: dict[int, float] = {}
        for mask in (m for m in masks if place in m.neurons):
            values = zip(mask.neurons[place].tolist(), mask.scores[place].tolist(), strict=True)
            for index, score in values:
                if index in indices:
                    lowest[index] = min(score, lowest.get(index, score))
        layer, kind = place
        best += [SharedNeuron(layer, kind, i, indices[i], s) for i, s in lowest.items()]
    return tuple(sorted(best, key=lambda n: (-n.score, n.layer, n.kind, n.index))[:TOP])


def _groups(
    shares: Mapping[str, Share], chances: Mapping[str, Chance]
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "count": share.count,
            "total": share.total,
            "base_rate": share.base_rate,
            "share_of_shared": share.mask_share,
            **asdict(chances[name]),
            "ratio": chances[name].ratio(share.count),
        }
        for name, share in shares.items()
    }


def _check_one_model(first: str, mine: NeuronMask, second: str, theirs: NeuronMask) -> None:
    if mine.anatomy != theirs.anatomy:
        one, other = mine.anatomy.shape(), theirs.anatomy.shape()
        differing = ", ".join(f"{k} {one[k]} and {other[k]}" for k in one if one[k] != other[k])
        raise MismatchError(
            f"{first} and {second} are for different models ({differing}) and cannot be compared; "
            "inspect them one at a time"
        )
