"""A safetensors file as bytes: a few rows change in place, all of it is read in blocks.

Nothing here holds more than one weight: a map lives as long as the tensor that was asked for, and a
block is 1 MiB.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.errors import RequestError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_BLOCK = 1 << 20


class WeightFile:
    """A safetensors file whose header is read; what is written to `tensor` reaches the disk."""

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path, self.writable = path, writable
        self.size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self.header: dict[str, Any] = json.loads(file.read(length))
        self.start = 8 + length

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of their bytes."""
        found = (name for name in self.header if name != "__metadata__")
        return sorted(found, key=lambda name: (self.header[name]["data_offsets"], name))

    def stored(self, name: str) -> str:
        """Precision of a tensor as the file names it, such as BF16 or I64."""
        return str(self.header[name]["dtype"])

    def dtype(self, name: str) -> torch.dtype:
        """Precision of a tensor. Raises RequestError for one that deltas cannot be added to."""
        written = self.stored(name)
        if written not in DTYPES:
            raise RequestError(
                f"weight {name!r} is stored as {written}; a patch is applied to F32, BF16 or F16"
            )
        return DTYPES[written]

    def tensor(self, name: str) -> Tensor:
        """A view of a tensor's bytes in the file, mapped as long as it is held."""
        low, high = self._span(name)
        dtype = self.dtype(name)
        if low % dtype.itemsize:
            raise RequestError(
                f"weight {name!r} lies unaligned in its file; save the model again with "
                "save_pretrained"
            )
        mapped = torch.from_file(
            str(self.path), shared=self.writable, size=self.size, dtype=torch.uint8
        )
        return mapped[low:high].view(dtype).view(self.header[name]["shape"])

    def blocks(self, name: str, entries: int = 0) -> Iterator[Tensor]:
        """A tensor's entries in turn, flat, read without a map; other precisions as bytes.

        `entries` a block, by default 1 MiB of them.
        """
        dtype = DTYPES.get(self.stored(name), torch.uint8)
        low, high = self._span(name)
        step = (entries or _BLOCK // dtype.itemsize) * dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(low)
            for at in range(low, high, step):
                yield torch.frombuffer(bytearray(file.read(min(step, high - at))), dtype=dtype)

    def head(self) -> bytes:
        """The bytes before the first tensor."""
        with self.path.open("rb") as file:
            return file.read(self.start)

    def _span(self, name: str) -> tuple[int, int]:
        low, high = (self.start + offset for offset in self.header[name]["data_offsets"])
        return low, high
