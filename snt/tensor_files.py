"""Safetensors files with one metadata key, `snt`: the same content gives the same bytes.

Files of others are input like any other: the header is checked against the file's own size before
anything is allocated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from snt.atomic import whole_file
from snt.errors import FormatError, MissingFileError, RunFailure

METADATA_KEY = "snt"
_HEADER_LIMIT = 64 << 20
_METADATA_LIMIT = 8 << 20


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and `metadata` (JSON, sorted keys) atomically. Raises RunFailure."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    _save(path, tensors, {METADATA_KEY: text})


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as other programs' weight files are written. Raises RunFailure."""
    _save(path, tensors, {"format": "pt"})


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole_file(path) as temporary:
        ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
        try:
            save_file(ordered, temporary, metadata=metadata)
        except SafetensorError as error:
            # The library's own error hides that the disk is full; only writing can fail here.
            reason = str(error).rpartition("I/O error: ")[2]
            raise RunFailure(
                f"could not write {path}: {reason}; nothing was left under that name. "
                "Free some space or choose another place with -o"
            ) from error


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file whose metadata says `expected_format`.

    Raises MissingFileError or FormatError; never allocates more than the file's size.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    metadata = read_metadata(path, expected_format)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, metadata
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"{path} is damaged: {error}; get it again from its author") from error


def read_metadata(path: Path, expected_format: str) -> dict[str, Any]:
    """The `snt` metadata alone. Raises MissingFileError or FormatError."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; give the path of a {expected_format} file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise FormatError(
                f"{path} is truncated or no safetensors file: header of {length} bytes in a file "
                f"of {size}; get it again from its author"
            )
        raw = file.read(length)
    try:
        text = json.loads(raw)["__metadata__"][METADATA_KEY]
        if len(text) > _METADATA_LIMIT:
            raise FormatError(f"{path}: {len(text)} bytes of metadata; at most {_METADATA_LIMIT}")
        metadata = json.loads(text)
        found = metadata["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{path} has no snt metadata; it was not written by snt, or was rewritten by another "
            "program"
        ) from error
    if found != expected_format:
        raise FormatError(f"{path} is a {found!r} file; a {expected_format} file is needed here")
    if metadata.get("version") != 1:
        raise FormatError(
            f"{path} has format version {metadata.get('version')!r}; this snt reads version 1"
        )
    return dict(metadata)
