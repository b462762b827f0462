"""A model directory's tensors, one at a time: nothing stays in memory that was not asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from snt.errors import FormatError


@dataclass(frozen=True)
class Shards:
    """Which file holds which tensor. A map of a file lasts as long as one tensor is copied.

    A longer one would keep every page that was read counted as memory of this process.
    """

    files: Mapping[str, Path]

    @classmethod
    def of(cls, directory: Path) -> Shards:
        """The safetensors of a model directory, one file or shards. Raises FormatError."""
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        try:
            if index.is_file():
                names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                return cls({str(name): _beside(directory, str(at)) for name, at in names.items()})
            with safe_open(single, framework="pt") as file:
                return cls(dict.fromkeys(file.keys(), single))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"{directory}: its safetensors cannot be read ({error}); copy or download it "
                "again, or save it with save_pretrained"
            ) from error

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def tensor(self, name: str) -> Tensor:
        """A copy of a whole tensor, in the precision it is stored in."""
        with self.mapped(name) as mapped:
            return mapped.clone()

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Copies of some rows (int64) of a matrix; the others are not read."""
        with self.mapped(name) as mapped:
            return mapped[rows]

    @contextmanager
    def mapped(self, name: str) -> Iterator[Tensor]:
        """A tensor as it lies in its file, within the block. Raises FormatError."""
        path = self.files.get(name)
        if path is None:
            raise FormatError(
                f"weight {name!r} is in none of the model's files; save the model again with "
                "save_pretrained, or use --backend full"
            )
        try:
            with safe_open(path, framework="pt") as file:
                yield file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise FormatError(
                f"{path}: weight {name!r} cannot be read ({error}); copy or download it again"
            ) from error


def _beside(directory: Path, file: str) -> Path:
    if Path(file).name != file or not (directory / file).is_file():
        raise FormatError(
            f"{directory}: its index names {file!r}, which is no file beside it; download it again"
        )
    return directory / file


def read_layer(
    shards: Shards,
    prefix: str,
    names: Mapping[str, tuple[int, ...]],
    into: dict[str, Tensor],
) -> dict[str, Tensor]:
    """A layer's tensors, as stored, by their names in it: into `into`, which lasts for all layers.

    Fresh tensors for every layer would leave the allocator with gaps that grow with the depth.
    Raises FormatError for another shape.
    """
    for name, shape in names.items():
        with shards.mapped(f"{prefix}.{name}") as mapped:
            if tuple(mapped.shape) != shape:
                raise FormatError(
                    f"weight {prefix}.{name} has the shape {tuple(mapped.shape)} where the model's "
                    f"config.json says {shape}; download the model again"
                )
            if name not in into or into[name].dtype != mapped.dtype:
                into[name] = torch.empty_like(mapped, memory_format=torch.contiguous_format)
            into[name].copy_(mapped)
    return into


def converted(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the device, in the precision of the computation; the same tensor where it is both."""
    return tensor.to(device).to(dtype)
