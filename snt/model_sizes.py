"""How large a model is, from its files' headers or, for an alias, from its published shape."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from snt.anatomy import KINDS, Anatomy, anatomy_of
from snt.backend import ModelSize
from snt.errors import FormatError
from snt.fingerprint import weight_files


def size_of(directory: Path) -> ModelSize:
    """Size of a model directory; reads headers only.

    Raises RequestError for a family that is not served, FormatError for weights that cannot be
    read.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    anatomy = anatomy_of(config)
    inside = f"{anatomy.family.layers}."
    total = in_layers = stored = 0
    for path in sorted(set(weight_files(directory).values())):
        for name, entry in _header(path).items():
            entries = math.prod(entry["shape"])
            low, high = entry["data_offsets"]
            total, stored = total + entries, stored + high - low
            if name.startswith(inside) and len(entry["shape"]) > 1:
                in_layers += entries
    return _size(anatomy, total, in_layers, stored, int(config.vocab_size))


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, AttributeError) as error:
        raise FormatError(
            f"{path}: its header cannot be read ({error}); download it again"
        ) from error


def _size(
    anatomy: Anatomy, parameters: int, in_layers: int, stored: int, vocabulary: int
) -> ModelSize:
    return ModelSize(
        parameters=parameters,
        in_layers=in_layers,
        layers=anatomy.layers,
        stored=stored,
        d_model=anatomy.d_model,
        d_ff=anatomy.d_ff,
        neurons=sum(anatomy.size(kind) for kind in KINDS),
        cache_entries=2 * anatomy.layers * anatomy.kv_heads * anatomy.head_dim,
        vocabulary=vocabulary,
    )


def _llama(anatomy: Anatomy, vocabulary: int, tied: bool = False, item: int = 2) -> ModelSize:
    """Size of a Llama or Mistral of this shape, its checkpoint stored at `item` bytes an entry."""
    attention = 2 * anatomy.d_model * (anatomy.size("q") + anatomy.size("k"))
    layer = attention + 3 * anatomy.d_model * anatomy.d_ff
    norms = (2 * anatomy.layers + 1) * anatomy.d_model
    words = (1 if tied else 2) * vocabulary * anatomy.d_model
    total = anatomy.layers * layer + norms + words
    return _size(anatomy, total, anatomy.layers * layer, total * item, vocabulary)


_SMOLLM2 = _llama(Anatomy("llama", 30, 576, 1536, 9, 3, 64), 49_152, tied=True, item=4)
_LLAMA2 = _llama(Anatomy("llama", 32, 4096, 11_008, 32, 32, 128), 32_000)
_LLAMA3 = _llama(Anatomy("llama", 32, 4096, 14_336, 32, 8, 128), 128_256)
_MISTRAL = _llama(Anatomy("mistral", 32, 4096, 14_336, 32, 8, 128), 32_000)
_VICUNA = _llama(Anatomy("llama", 40, 5120, 13_824, 40, 40, 128), 32_000)

# By alias: what `snt doctor` says of a model without asking anybody for it.
ALIAS_SIZES: Mapping[str, ModelSize] = MappingProxyType(
    {
        "smollm2-135m": _SMOLLM2,
        "llama3-8b": _LLAMA3,
        "llama2-7b-chat": _LLAMA2,
        "mistral-7b": _MISTRAL,
        "vicuna-13b": _VICUNA,
        "llama2-7b-base": _LLAMA2,
        "llama3-8b-base": _LLAMA3,
        "mistral-7b-base": _MISTRAL,
    }
)
