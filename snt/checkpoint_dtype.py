"""A checkpoint's weight files in another precision, and two weight files compared, in blocks."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.atomic import write_json
from snt.errors import RequestError, unknown_name
from snt.weight_bytes import DTYPES, WeightFile

NAMES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
_STORED = {dtype: written for written, dtype in DTYPES.items()}
_ITEM = {"F32": 4, "BF16": 2, "F16": 2}


def dtype_named(name: str) -> torch.dtype | None:
    """The precision of a --dtype option; None for `auto`. Raises UnknownNameError."""
    if name == "auto":
        return None
    if name not in NAMES:
        raise unknown_name("dtype", name, ("auto", *NAMES))
    return NAMES[name]


def all_of(dtype: torch.dtype, files: Sequence[Path]) -> bool:
    """Whether every F32, BF16 or F16 tensor of the weight files is `dtype` already."""
    return all(
        weights.stored(name) not in DTYPES or DTYPES[weights.stored(name)] == dtype
        for weights in map(WeightFile, files)
        for name in weights.names
    )


def convert(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write `source` to `target` with its F32, BF16 and F16 tensors as `dtype`, others as they are.

    Raises RequestError for a value that `dtype` cannot hold.
    """
    weights = WeightFile(source)
    header: dict[str, Any] = {}
    if "__metadata__" in weights.header:
        header["__metadata__"] = weights.header["__metadata__"]
    # Wide entries first, so that every tensor stays aligned.
    order = sorted(weights.names, key=lambda name: -_width(weights, name, dtype))
    at = 0
    for name in order:
        entry = dict(weights.header[name])
        low, high = entry["data_offsets"]
        size = high - low
        if entry["dtype"] in DTYPES:
            size = size // _ITEM[entry["dtype"]] * dtype.itemsize
            entry["dtype"] = _STORED[dtype]
        entry["data_offsets"] = [at, at + size]
        header[name] = entry
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for block in weights.blocks(name):
                file.write(_bytes(rounded(block, dtype, name)).numpy().tobytes())


def rounded(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`values` as `dtype`; bytes of other precisions as they are.

    Raises RequestError for a finite value that `dtype` holds as infinity.
    """
    if values.dtype == torch.uint8 or values.dtype == dtype:
        return values
    made = values.to(dtype)
    if dtype == torch.float16 and not torch.equal(made.isfinite(), values.isfinite()):
        largest = float(values[values.isfinite()].abs().max())
        raise RequestError(
            f"weight {name!r} holds {largest:.4g}, and float16 ends at 65504; give --dtype bf16"
        )
    return made


def bytes_changed(source: Path, target: Path, dtype: torch.dtype | None) -> int:
    """Bytes of `target` that are not those of `source` (as `dtype`), the header included."""
    one, two = WeightFile(source), WeightFile(target)
    changed = 0
    if dtype is None:
        heads = one.head(), two.head()
        changed += abs(len(heads[0]) - len(heads[1]))
        changed += sum(x != y for x, y in zip(*heads, strict=False))
    entries = 1 << 18
    for name in one.names:
        if name not in two.header:
            changed += one.size
            continue
        for x, y in zip(one.blocks(name, entries), two.blocks(name, entries), strict=True):
            wanted = x if dtype is None else rounded(x, dtype, name)
            changed += int(torch.count_nonzero(_bytes(wanted) != _bytes(y)))
    return changed


def declare(directory: Path, dtype: torch.dtype) -> None:
    """Write the precision into a model directory's config, and its sizes into its index."""
    config = directory / "config.json"
    held = json.loads(config.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    named = [key for key in ("dtype", "torch_dtype") if key in held] or ["dtype"]
    write_json(config, {**held, **dict.fromkeys(named, name)})
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return
    listed = json.loads(index.read_text(encoding="utf-8"))
    files = {directory / file for file in listed["weight_map"].values()}
    total = sum(found.size - found.start for found in map(WeightFile, sorted(files)))
    write_json(index, {**listed, "metadata": {**listed.get("metadata", {}), "total_size": total}})


def _width(weights: WeightFile, name: str, dtype: torch.dtype) -> float:
    """Bytes an entry takes once floats are `dtype`."""
    if weights.stored(name) in DTYPES:
        return dtype.itemsize
    low, high = weights.header[name]["data_offsets"]
    entries = max(1, math.prod(weights.header[name]["shape"]))
    return float((high - low) / entries)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)
