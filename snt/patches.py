"""A patch: the float32 deltas of a tuning, and the file they are kept in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.anatomy import Anatomy, anatomy_from
from snt.deltas import SliceKey
from snt.errors import FormatError, MissingFileError
from snt.fingerprint import Fingerprint
from snt.tensor_files import read_tensors, write_tensors

FORMAT = "snt-patch"
_NAME = re.compile(r"layers\.(0|[1-9]\d{0,5})\.([a-z0-9_.]+)\.(rows|cols|delta|cols_delta)")
_PARTS = (
    frozenset({"rows", "delta"}),
    frozenset({"cols", "delta"}),
    frozenset({"rows", "delta", "cols", "cols_delta"}),
)


@dataclass(frozen=True)
class Patch:
    """Per slice the int32 indices (n,) and the delta: rows (n, d_in), columns (d_out, n), float32.

    A weight with rows and columns changes by the sum of both where they cross. `fingerprint` is
    that of the weights it was trained beside; `provenance` the other metadata.
    Raises FormatError when a slice does not fit the anatomy.
    """

    anatomy: Anatomy
    slices: Mapping[SliceKey, tuple[Tensor, Tensor]]
    fingerprint: Fingerprint
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, (indices, delta) in self.slices.items():
            _check(self.anatomy, key, indices, delta)

    @property
    def entries(self) -> int:
        """Number of entries of all deltas."""
        return sum(delta.numel() for _, delta in self.slices.values())


def save_patch(patch: Patch, path: Path) -> None:
    """Write the patch file; the same patch gives the same bytes."""
    tensors = {}
    for key, (indices, delta) in patch.slices.items():
        place = f"layers.{key.layer}.{key.module}"
        shared = key.axis == "cols" and SliceKey(key.layer, key.module, "rows") in patch.slices
        tensors[str(key)] = indices
        tensors[f"{place}.cols_delta" if shared else f"{place}.delta"] = delta
    metadata = {
        **patch.provenance,
        "format": FORMAT,
        "version": 1,
        "anatomy": patch.anatomy.shape(),
        "fingerprint": patch.fingerprint.weights,
    }
    write_tensors(path, tensors, metadata)


def load_patch(path: Path) -> Patch:
    """Read a patch file, trusting nothing in it. Raises MissingFileError or FormatError."""
    tensors, metadata = read_tensors(path, FORMAT)
    try:
        anatomy = anatomy_from(metadata.get("anatomy"))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    weights = str(metadata.get("fingerprint"))
    derived = ("format", "version", "anatomy", "fingerprint")
    provenance = {key: value for key, value in metadata.items() if key not in derived}
    try:
        slices = _paired(tensors)
        return Patch(anatomy, slices, Fingerprint(anatomy.shape(), weights), provenance)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def load_directory(directory: Path) -> Patch:
    """The patch of a patch directory. Raises MissingFileError or FormatError."""
    file = directory / "patch.safetensors"
    if not file.is_file():
        raise MissingFileError(
            f"{directory} holds no patch.safetensors; give the folder of `snt tune`"
        )
    return load_patch(file)


def _paired(tensors: Mapping[str, Tensor]) -> dict[SliceKey, tuple[Tensor, Tensor]]:
    found: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise FormatError(f"tensor {name!r:.200} has no place in a patch file")
        found.setdefault((int(match[1]), match[2]), {})[match[3]] = tensor
    slices = {}
    for (layer, module), parts in sorted(found.items()):
        if parts.keys() not in _PARTS:
            raise FormatError(
                f"layers.{layer}.{module} has {', '.join(sorted(parts))}, and needs rows or cols "
                "with their delta, or rows, delta, cols and cols_delta"
            )
        if "rows" in parts:
            slices[SliceKey(layer, module, "rows")] = (parts["rows"], parts["delta"])
        if "cols" in parts:
            delta = parts["cols_delta" if "rows" in parts else "delta"]
            slices[SliceKey(layer, module, "cols")] = (parts["cols"], delta)
    return slices


def module_shape(anatomy: Anatomy, module: str) -> tuple[int, int] | None:
    """(d_out, d_in) of a module's weight; None for a module that takes no deltas."""
    return None if anatomy.in_experts(module) else anatomy.weight_shapes().get(module)


def _check(anatomy: Anatomy, key: SliceKey, indices: Tensor, delta: Tensor) -> None:
    shape = module_shape(anatomy, key.module)
    if shape is None or not 0 <= key.layer < anatomy.layers:
        raise FormatError(f"{key}: no such module in a model of {anatomy.layers} layers")
    if indices.dtype != torch.int32 or indices.dim() != 1:
        raise FormatError(f"{key}: {indices.dtype} of shape {tuple(indices.shape)}; int32 (n,)")
    size = shape[0] if key.axis == "rows" else shape[1]
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise FormatError(f"{key}: indices outside 0 to {size - 1}")
    if bool((indices[1:] <= indices[:-1]).any()):
        raise FormatError(f"{key}: indices are not sorted and unique")
    wanted = (len(indices), shape[1]) if key.axis == "rows" else (shape[0], len(indices))
    if delta.dtype != torch.float32 or tuple(delta.shape) != wanted:
        raise FormatError(
            f"{key}: the delta is {delta.dtype} of shape {tuple(delta.shape)}; float32 {wanted}"
        )
    if not bool(torch.isfinite(delta).all()):
        raise FormatError(f"{key}: the delta holds NaN or infinity")
