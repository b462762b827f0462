"""Masks from neuron files of the code published with Zhao et al., ICLR 2025, and of its heirs.

Such a file has five lines: the neurons of up_proj, down_proj, q_proj, k_proj and v_proj, each a
Python dictionary from layer to a set of indices, as in `{0: {12, 7}, 1: set()}`. Re-implementations
write lists, keys in quotes, or items like 'neuron_12'. Nothing in it is executed.

Key and value indices stand on one of three axes. That code scores keys and values repeated for
every query head, so an index is (query head, coordinate); before it tunes, it divides the index by
the number of query heads that share a head, which names the row of another head's coordinate; and
others write rows of k_proj and v_proj at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from snt import __version__
from snt.anatomy import KINDS, Anatomy, anatomy_of
from snt.errors import FormatError, MissingFileError, RequestError, unknown_name
from snt.fingerprint import fingerprint_of
from snt.masks import NeuronMask
from snt.model_refs import ResolvedModel
from snt.model_sizes import size_of
from snt.scores import Place

LINES: Final = ("up_proj", "down_proj", "q_proj", "k_proj", "v_proj")
_KINDS: Final = {"up_proj": "ffn", "q_proj": "q", "k_proj": "k", "v_proj": "v"}
# A hundred times what a 7B model's neurons take at 1%.
_LARGEST = 16 * 2**20
_ENTRY = re.compile(
    r"\s*(?P<layer>\d{1,9}|'\d{1,9}'|\"\d{1,9}\")\s*:\s*"
    r"(?:set\(\)|\{(?P<set>[^{}\[\]()]*)\}|\[(?P<list>[^{}\[\]()]*)\]|\((?P<tuple>[^{}\[\]()]*)\))"
    r"\s*(?P<more>,?)"
)
_INDEX = re.compile(r"(?P<quote>['\"]?)(?:neuron_)?(?P<number>\d{1,9})(?P=quote)")

AXES: Final[Mapping[str, Callable[[Tensor, Anatomy], Tensor]]] = {
    "tuned": lambda index, a: index // a.group,
    "measured": lambda index, a: index // (a.group * a.head_dim) * a.head_dim + index % a.head_dim,
    "rows": lambda index, _: index,
}
DEFAULT_AXIS: Final = "tuned"


@dataclass(frozen=True)
class PublishedNeurons:
    """What such a file holds: per line and layer the indices as they stand, sorted and unique."""

    lines: Mapping[str, Mapping[int, tuple[int, ...]]]
    sha256: str

    def may_be_rows(self, anatomy: Anatomy) -> bool:
        """Whether key and value indices all stay within the rows that are there."""
        return all(
            not indices or indices[-1] < anatomy.size(_KINDS[name])
            for name in ("k_proj", "v_proj")
            for indices in self.lines[name].values()
        )

    @property
    def only_down(self) -> int:
        """Indices of the down projection that its up projection lacks: they make no neuron."""
        up = self.lines["up_proj"]
        return sum(
            len(set(found) - set(up.get(layer, ())))
            for layer, found in self.lines["down_proj"].items()
        )


def read_published(path: Path) -> PublishedNeurons:
    """Read such a file, trusting nothing in it. Raises MissingFileError or FormatError."""
    if not path.is_file():
        raise MissingFileError(f"no file {path}; give a neuron file of five lines")
    if path.stat().st_size > _LARGEST:
        raise FormatError(f"{path}: {path.stat().st_size:,} bytes are more than a neuron file has")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: it is no text ({error})") from error
    rows = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(rows) != len(LINES):
        raise FormatError(
            f"{path}: it has {len(rows)} lines that are not empty, and a neuron file has "
            f"{len(LINES)}: {', '.join(LINES)}"
        )
    lines = {
        name: _line(f"{path}, line {number} ({name})", line)
        for name, (number, line) in zip(LINES, rows, strict=True)
    }
    return PublishedNeurons(lines, hashlib.sha256(data).hexdigest())


def published_mask(
    found: PublishedNeurons, anatomy: Anatomy, axis: str = DEFAULT_AXIS
) -> NeuronMask:
    """The neurons of `found` as a mask of a model of this anatomy.

    `axis` says what the key and value indices are: `tuned` divides them as the published tuning
    does, `measured` takes the row whose repeated copy was scored, `rows` takes them as they are.
    Raises UnknownNameError for another axis, FormatError for what does not fit the anatomy.
    """
    check_axis(axis)
    # What the down projection counts differs from file to file: its columns, or its outputs.
    _check("down_proj", found, anatomy, max(anatomy.size("ffn"), anatomy.d_model))
    neurons: dict[Place, Tensor] = {}
    for name, kind in _KINDS.items():
        repeated = kind in ("k", "v") and axis != "rows"
        size = anatomy.size("q" if repeated else kind)
        _check(name, found, anatomy, size)
        for layer, indices in sorted(found.lines[name].items()):
            if not indices:
                continue
            index = torch.tensor(indices, dtype=torch.int64)
            rows = AXES[axis](index, anatomy) if kind in ("k", "v") else index
            neurons[layer, kind] = torch.tensor(sorted(set(rows.tolist())), dtype=torch.int32)
    if not neurons:
        raise RequestError("the file names no neuron; there is nothing to import")
    return NeuronMask(anatomy, neurons)


def check_axis(axis: str) -> None:
    """Raise UnknownNameError for an axis that is none."""
    if axis not in AXES:
        raise unknown_name("axis of keys and values", axis, AXES)


def _check(name: str, found: PublishedNeurons, anatomy: Anatomy, size: int) -> None:
    for layer, indices in found.lines[name].items():
        if layer >= anatomy.layers:
            raise FormatError(
                f"{name}: layer {layer} is beyond the model's {anatomy.layers}; give the model "
                "that the file is of"
            )
        if indices and indices[-1] >= size:
            more = "; --kv-axis says how they count" if name in ("k_proj", "v_proj") else ""
            raise FormatError(
                f"{name}: index {indices[-1]} of layer {layer} is beyond the {size} there are"
                f"{more}; give the model that the file is of"
            )


def imported(found: PublishedNeurons, model: ResolvedModel, axis: str = DEFAULT_AXIS) -> NeuronMask:
    """The mask of `found` for a model on this machine, with where it is from.

    Reads the model's configuration, and of its weights the rows of a fingerprint. Raises as
    `published_mask` does.
    """
    from transformers import AutoConfig

    anatomy = anatomy_of(AutoConfig.from_pretrained(model.directory))
    mask = published_mask(found, anatomy, axis)
    provenance: dict[str, Any] = {
        "model": {
            "id": model.id,
            "revision": model.revision,
            "architecture": anatomy.model_type,
            "parameters": size_of(model.directory).parameters,
        },
        "fingerprint": fingerprint_of(model.directory, anatomy).weights,
        "selection": {
            "rule": "import",
            "source": "a neuron file in the form of the published code (Zhao et al., ICLR 2025)",
            "sha256": found.sha256,
            "kv_axis": axis,
        },
        "kinds": [kind for kind in KINDS if mask.count(kind)],
        "snt": __version__,
    }
    return NeuronMask(anatomy, mask.neurons, provenance=provenance)


def _line(where: str, line: str) -> dict[int, tuple[int, ...]]:
    """One dictionary, taken apart by its commas: nothing is evaluated, memory is a few times it."""
    text = line.strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise FormatError(f"{where}: it is no dictionary from layers to indices")
    found: dict[int, tuple[int, ...]] = {}
    at, end, more = 1, len(text) - 1, True
    while text[at:end].strip():
        entry = _ENTRY.match(text, at, end)
        if entry is None or not more:
            raise FormatError(
                f"{where}: {text[at:end][:40].strip()!r} is no layer with a set or list of indices"
            )
        layer = int(entry["layer"].strip("'\""))
        if layer in found:
            raise FormatError(f"{where}: layer {layer} stands there twice")
        items = entry["set"] or entry["list"] or entry["tuple"] or ""
        found[layer] = _indices(f"{where}: layer {layer}", items)
        at, more = entry.end(), bool(entry["more"])
    return found


def _indices(where: str, items: str) -> tuple[int, ...]:
    found = set()
    # A comma may follow the last one.
    for item in map(
        str.strip, items.rstrip().removesuffix(",").split(",") if items.strip() else ()
    ):
        index = _INDEX.fullmatch(item)
        if index is None:
            raise FormatError(
                f"{where}, index {item[:40]!r} is no whole number of at most 9 digits"
            )
        found.add(int(index["number"]))
    return tuple(sorted(found))
