"""Which weights a mask or patch belongs to: a cheap digest, read without loading the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.anatomy import Anatomy
from snt.errors import FormatError

_ROWS = 4


@dataclass(frozen=True)
class Fingerprint:
    """`shape` is the anatomy's; `weights` a SHA-256 of fixed slices, rounded to bfloat16."""

    shape: Mapping[str, Any]
    weights: str


def fingerprint_of(directory: Path, anatomy: Anatomy) -> Fingerprint:
    """Fingerprint of a model directory, its weights in one file or in shards.

    Reads evenly spaced rows of every projection of every layer, of experts those of a few. They are
    rounded to bfloat16, so that a float32 copy of a bfloat16 checkpoint has the same fingerprint.
    Raises FormatError when a weight is missing.
    """
    import torch
    from safetensors import safe_open

    files = weight_files(directory)
    digest = hashlib.sha256()
    opened: dict[Path, Any] = {}

    def view(name: str) -> Any:
        path = files.get(name)
        if path is None:
            raise FormatError(
                f"{directory}: weight {name!r} is in none of its files; save the model again with "
                "save_pretrained"
            )
        if path not in opened:
            # A map of every shard would hold the whole checkpoint in memory.
            opened.clear()
            opened[path] = safe_open(path, framework="pt")
        return opened[path].get_slice(name)

    def add(rows: Any) -> None:
        digest.update(rows.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())

    for name in _projections(anatomy):
        found = view(name)
        for at in _spread(found.get_shape()[0]):
            add(found[at : at + 1])
    for layer in range(anatomy.layers if anatomy.family.experts else 0):
        for expert in _spread(anatomy.experts):
            for rows in _expert_rows(anatomy, layer, expert, files, view):
                add(rows)
    return Fingerprint(anatomy.shape(), digest.hexdigest())


def _spread(size: int) -> list[int]:
    """`_ROWS` evenly spaced indices below `size`."""
    return [number * size // _ROWS for number in range(_ROWS)]


def _expert_rows(
    anatomy: Anatomy, layer: int, expert: int, files: Mapping[str, Path], view: Callable[[str], Any]
) -> Iterator[Any]:
    """(1, d_in) rows of one expert's gate, up and down: the same however a checkpoint lays it out.

    Published checkpoints hold every expert's projections by themselves, others all as one tensor.
    """
    family = anatomy.family
    parts = ((family.up, 0, anatomy.d_ff), (family.up, anatomy.d_ff, anatomy.d_ff))
    whole = (*parts, (family.down, 0, anatomy.d_model))
    for single, (module, offset, size) in zip(family.expert_files, whole, strict=True):
        name = f"{family.layers}.{layer}.{single.format(expert)}"
        fused = f"{family.layers}.{layer}.{module}"
        for at in _spread(size):
            if fused in files:
                yield view(fused)[expert, offset + at : offset + at + 1]
            else:
                yield view(name)[at : at + 1]


def weight_files(directory: Path) -> dict[str, Path]:
    """The file of every tensor of a model directory, single or sharded. Raises FormatError."""
    from safetensors import SafetensorError, safe_open

    index = directory / "model.safetensors.index.json"
    try:
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(tensor): _beside(index, str(file)) for tensor, file in names.items()}
        single = directory / "model.safetensors"
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{directory}: its weights cannot be read ({error}); copy or download it again"
        ) from error


def _beside(index: Path, file: str) -> Path:
    if Path(file).name != file or not (index.parent / file).is_file():
        raise FormatError(f"{index} names {file!r}, which is no file beside it; download it again")
    return index.parent / file


def _projections(anatomy: Anatomy) -> list[str]:
    family = anatomy.family
    attention = (family.query, family.key, family.value, family.output)
    dense = (family.gate or family.up, family.up, family.down) if family.experts is None else ()
    modules = tuple(dict.fromkeys((*attention, *dense)))
    return [
        weight_name(anatomy, layer, module) for layer in range(anatomy.layers) for module in modules
    ]


def weight_name(anatomy: Anatomy, layer: int, module: str) -> str:
    """Name of a layer's weight in the checkpoint."""
    return f"{anatomy.family.layers}.{layer}.{module}.weight"
