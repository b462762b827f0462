"""The scores file: the accumulators of a detection, from which any mask is cut without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.anatomy import KINDS, Anatomy, anatomy_from
from snt.errors import FormatError
from snt.scores import BINS, NeuronScores, Place, Scores
from snt.tensor_files import read_tensors, write_tensors

FORMAT = "snt-scores"
_NAME = re.compile(r"layers\.(0|[1-9]\d{0,5})\.([a-z]+)\.(min|worst_rank|hist)")
_DTYPES = {"min": torch.float32, "worst_rank": torch.int32, "hist": torch.int32}


@dataclass(frozen=True)
class ScoresFile:
    """Scores of prompts on one model; `provenance` is the rest of the metadata."""

    anatomy: Anatomy
    scores: Scores
    provenance: Mapping[str, Any]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that were scored."""
        found = {kind for _, kind in self.scores.places}
        return tuple(kind for kind in KINDS if kind in found)

    @property
    def prompts(self) -> int:
        """Prompts counted, dropped ones left out."""
        return max((held.prompts for held in self.scores.places.values()), default=0)


def scores_path(mask_path: Path, against: bool = False) -> Path:
    """`m.safetensors` -> `m.scores.safetensors`, or `m.against.scores.safetensors`."""
    stem = mask_path.name.removesuffix(".safetensors")
    return mask_path.with_name(f"{stem}{'.against' if against else ''}.scores.safetensors")


def save_scores(file: ScoresFile, path: Path) -> None:
    """Write atomically; the same scores give the same bytes."""
    tensors = {}
    for (layer, kind), scores in file.scores.places.items():
        parts = (scores.minimum, scores.worst_rank, scores.histogram.int())
        for part, tensor in zip(_DTYPES, parts, strict=True):
            tensors[f"layers.{layer}.{kind}.{part}"] = tensor
    metadata = {
        **file.provenance,
        "format": FORMAT,
        "version": 1,
        "anatomy": file.anatomy.shape(),
        "bins": {"count": BINS, "rank": "floor(2 * log2(rank + 1))"},
    }
    write_tensors(path, tensors, metadata)


def load_scores(path: Path, *, some_layers: bool = False) -> ScoresFile:
    """Read a scores file, trusting nothing in it. Raises MissingFileError or FormatError.

    `some_layers`: an unfinished detection may have scored only some of the layers.
    """
    tensors, metadata = read_tensors(path, FORMAT)
    found: dict[Place, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise FormatError(f"{path}: tensor {name!r} has no place in a scores file")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    try:
        anatomy = anatomy_from(metadata.get("anatomy"))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    sizes = {kind: anatomy.size(kind) for kind in KINDS}
    places = {place: _scores(path, place, parts, sizes) for place, parts in found.items()}
    if any(layer >= anatomy.layers for layer, _ in places):
        raise FormatError(f"{path}: a layer beyond the model's {anatomy.layers}")
    kinds = {kind for _, kind in places}
    layers = len({layer for layer, _ in places}) if some_layers else anatomy.layers
    if len(places) != layers * len(kinds):
        raise FormatError(f"{path}: a kind must have scores in all {anatomy.layers} layers")
    if len({scores.prompts for scores in places.values()}) > 1:
        raise FormatError(f"{path}: its layers and kinds do not count the same prompts")
    derived = ("format", "version", "anatomy", "bins")
    provenance = {key: value for key, value in metadata.items() if key not in derived}
    return ScoresFile(anatomy, Scores(places), provenance)


def _scores(
    path: Path, place: Place, parts: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> NeuronScores:
    name = f"{path}: layers.{place[0]}.{place[1]}"
    size = sizes.get(place[1])
    for part, dtype in _DTYPES.items():
        shape = (size, BINS) if part == "hist" else (size,)
        tensor = parts.get(part)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise FormatError(f"{name}.{part} is missing, or not {dtype} of shape {shape}")
    totals = parts["hist"].sum(dim=1)
    if bool((parts["hist"] < 0).any()) or bool((totals != totals[0]).any()) or not totals[0]:
        raise FormatError(f"{name}.hist does not count the same prompts for every neuron")
    scores = NeuronScores(parts["min"], parts["worst_rank"], parts["hist"])
    if not bool(torch.isfinite(scores.minimum).all()) or bool((scores.minimum < 0).any()):
        raise FormatError(f"{name}.min holds values that are no importance")
    worst = scores.worst_rank
    if bool((worst < 0).any()) or bool((worst >= len(worst)).any()):
        raise FormatError(f"{name}.worst_rank is outside 0 to {len(worst) - 1}")
    return scores
