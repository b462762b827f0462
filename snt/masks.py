"""A set of neurons of one model: set algebra, shares, and the mask file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.anatomy import KINDS, Anatomy, anatomy_from
from snt.errors import FormatError, MismatchError
from snt.scores import Place
from snt.tensor_files import read_tensors, write_tensors

FORMAT = "snt-mask"
_NAME = re.compile(r"layers\.(0|[1-9]\d{0,5})\.([a-z]+)(\.score)?")


@dataclass(frozen=True)
class NeuronMask:
    """Sorted, unique int32 neuron indices per non-empty (layer, kind), and how they were found.

    `scores` may hold a float32 score per neuron; `provenance` is what the file's metadata says
    beside the anatomy. Raises FormatError when indices do not fit the anatomy.
    """

    anatomy: Anatomy
    neurons: Mapping[Place, Tensor]
    scores: Mapping[Place, Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, indices in self.neurons.items():
            _check_indices(self.anatomy, place, indices)
        for place, values in self.scores.items():
            _check_scores(place, values, self.neurons.get(place))

    def __len__(self) -> int:
        return sum(len(indices) for indices in self.neurons.values())

    def count(self, kind: str) -> int:
        """Masked neurons of `kind` in all layers."""
        return sum(len(indices) for (_, k), indices in self.neurons.items() if k == kind)

    def counts(self) -> dict[str, int]:
        """Masked neurons of each kind."""
        return {kind: self.count(kind) for kind in KINDS}

    @property
    def parameters(self) -> int:
        """Parameters that belong to the masked neurons."""
        return sum(self.count(kind) * self.anatomy.neuron_parameters(kind) for kind in KINDS)

    def union(self, other: NeuronMask) -> NeuronMask:
        """Neurons of either mask; scores are dropped, for they may differ."""
        return self._combine(other, set.union)

    def intersect(self, other: NeuronMask) -> NeuronMask:
        """Neurons of both masks."""
        return self._combine(other, set.intersection)

    def subtract(self, other: NeuronMask) -> NeuronMask:
        """Neurons of this mask that are not in the other: N_safe \\ N_foundation."""
        return self._combine(other, set.difference)

    def overlap(self, other: NeuronMask) -> float:
        """Intersection over union; 1.0 for two empty masks."""
        union = len(self.union(other))
        return len(self.intersect(other)) / union if union else 1.0

    def _combine(
        self, other: NeuronMask, operation: Callable[[set[int], set[int]], set[int]]
    ) -> NeuronMask:
        if self.anatomy != other.anatomy:
            raise MismatchError(
                f"the masks are for different models: {self.anatomy.shape()} and "
                f"{other.anatomy.shape()}; both must have the same shape"
            )
        neurons = {}
        for place in sorted(self.neurons.keys() | other.neurons.keys()):
            mine, theirs = (_as_set(mask.neurons.get(place)) for mask in (self, other))
            kept = sorted(operation(mine, theirs))
            if kept:
                neurons[place] = torch.tensor(kept, dtype=torch.int32)
        parents = [dict(mask.provenance) for mask in (self, other)]
        # What both parents agree on is still true of the result.
        shared = {
            key: self.provenance[key]
            for key in ("model", "fingerprint")
            if key in self.provenance and self.provenance[key] == other.provenance.get(key)
        }
        return NeuronMask(self.anatomy, neurons, provenance={**shared, "parents": parents})


def save_mask(mask: NeuronMask, path: Path) -> None:
    """Write the mask file; the same mask gives the same bytes."""
    tensors = {f"layers.{layer}.{kind}": t for (layer, kind), t in mask.neurons.items() if len(t)}
    tensors |= {f"layers.{layer}.{kind}.score": t for (layer, kind), t in mask.scores.items()}
    counts = mask.counts()
    metadata = {
        **mask.provenance,
        "format": FORMAT,
        "version": 1,
        "anatomy": mask.anatomy.shape(),
        "counts": counts,
        "sizes": {kind: mask.anatomy.size(kind) for kind in KINDS},
    }
    write_tensors(path, tensors, metadata)


def load_mask(path: Path) -> NeuronMask:
    """Read a mask file, trusting nothing in it. Raises MissingFileError or FormatError."""
    tensors, metadata = read_tensors(path, FORMAT)
    neurons: dict[Place, Tensor] = {}
    scores: dict[Place, Tensor] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise FormatError(f"{path}: tensor {name!r} has no place in a mask file")
        place = (int(match[1]), match[2])
        (scores if match[3] else neurons)[place] = tensor
    declared = metadata.get("anatomy")
    derived = ("format", "version", "anatomy", "counts", "sizes")
    provenance = {key: value for key, value in metadata.items() if key not in derived}
    try:
        anatomy = anatomy_from(declared)
        mask = NeuronMask(anatomy, neurons, scores, provenance)
        counts = mask.counts()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    if metadata.get("counts") != counts:
        raise FormatError(
            f"{path}: its metadata counts {metadata.get('counts')!r:.200} and "
            f"its tensors hold {counts}"
        )
    return mask


def _as_set(indices: Tensor | None) -> set[int]:
    return set() if indices is None else set(indices.tolist())


def _check_indices(anatomy: Anatomy, place: Place, indices: Tensor) -> None:
    layer, kind = place
    name = f"layers.{layer}.{kind}"
    if kind not in KINDS or not 0 <= layer < anatomy.layers:
        raise FormatError(f"{name}: no such layer and kind in a model of {anatomy.layers} layers")
    if indices.dtype != torch.int32 or indices.dim() != 1:
        raise FormatError(f"{name}: {indices.dtype} of shape {tuple(indices.shape)}; int32 (n,)")
    if not len(indices):
        return
    if int(indices.min()) < 0 or int(indices.max()) >= anatomy.size(kind):
        raise FormatError(
            f"{name}: indices {int(indices.min())} to {int(indices.max())}; the model has "
            f"{anatomy.size(kind)} neurons there"
        )
    if bool((indices[1:] <= indices[:-1]).any()):
        raise FormatError(f"{name}: indices are not sorted and unique")


def _check_scores(place: Place, values: Tensor, indices: Tensor | None) -> None:
    name = f"layers.{place[0]}.{place[1]}.score"
    if indices is None or values.shape != indices.shape or values.dtype != torch.float32:
        raise FormatError(f"{name}: needs one float32 score for each index of its neurons")
    if not bool(torch.isfinite(values).all()):
        raise FormatError(f"{name}: holds NaN or infinity")
