"""A safetensors file as mapped bytes: tensors are views, so that a few rows change in place."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

from snt.errors import RequestError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class WeightFile:
    """A mapped safetensors file; what is written to its tensors reaches the disk when writable."""

    def __init__(self, path: Path, writable: bool) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self.header = json.loads(file.read(length))
        self.start = 8 + length
        self.bytes = torch.from_file(str(path), shared=writable, size=size, dtype=torch.uint8)

    def dtype(self, name: str) -> torch.dtype:
        """Precision of a tensor. Raises RequestError for one that deltas cannot be added to."""
        written = self.header[name]["dtype"]
        if written not in _DTYPES:
            raise RequestError(
                f"weight {name!r} is stored as {written}; a patch is applied to F32, BF16 or F16"
            )
        return _DTYPES[written]

    def tensor(self, name: str) -> Tensor:
        """A view of a tensor's bytes in the file."""
        entry = self.header[name]
        low, high = (self.start + offset for offset in entry["data_offsets"])
        raw = self.bytes[low:high]
        dtype = self.dtype(name)
        if raw.storage_offset() % dtype.itemsize:
            raise RequestError(
                f"weight {name!r} lies unaligned in its file; save the model again with "
                "save_pretrained"
            )
        return raw.view(dtype).view(entry["shape"])

    def flush(self) -> None:
        """Let go of the map, so that the file can be read back."""
        del self.bytes
