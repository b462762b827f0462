"""Prompts and training pairs: built-in corpora with fixed splits, the user's files, the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snt.corpus_files import HubReference, Row, read_hub, read_rows
from snt.errors import FormatError, RequestError, unknown_name
from snt.progress import Progress, Silence
from snt.training_pairs import TrainingPairs as TrainingPairs
from snt.training_pairs import pairs_of

SPLITS = ("detect", "tune", "eval")
BUILT_IN: Mapping[str, str] = {
    "harmful": "prompt",
    "refusals": "prompt",
    "harmless": "prompt",
    "lookalike": "prompt",
    "prose": "text",
}
PAIRS = ("refusals",)  # The built-in corpora that hold responses too.
_COLUMNS = ("prompt", "text", "question", "instruction")
_HINT = "A file is given by its path, a dataset of the Hub as hf:ID."


@dataclass(frozen=True)
class Corpus:
    """Texts in order, with what a report says of them. `name` is never a path."""

    name: str
    texts: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def sha256(self) -> str:
        """Digest of the texts alone, so that the same prompts are the same corpus anywhere."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(json.dumps(text).encode() + b"\n")
        return digest.hexdigest()

    def first(self, limit: int | None) -> Corpus:
        """The first `limit` texts; all of them when it is None."""
        return replace(self, texts=self.texts[:limit], rows=self.rows[:limit])

    def describe(self) -> dict[str, Any]:
        """Name, row count and digest, as they stand in the metadata of a mask."""
        return {"name": self.name, "rows": len(self.texts), "sha256": self.sha256}


def built_in(name: str, split: str | None = None) -> Corpus:
    """A corpus of the wheel, whole or one of its splits.

    Raises UnknownNameError, and RequestError for a split that the corpus does not have.
    """
    if name not in BUILT_IN:
        raise unknown_name("corpus", name, BUILT_IN, _HINT)
    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    every = read_rows(Path(__file__).parent / "data" / f"{name}.jsonl")
    rows = tuple(r for r in every if split is None or r["split"] == split)
    if not rows:
        held = sorted({str(r["split"]) for r in every})
        raise RequestError(f"corpus {name!r} has no split {split!r}; it has {', '.join(held)}")
    label = name if split is None else f"{name}/{split}"
    return Corpus(label, tuple(r[BUILT_IN[name]] for r in rows), rows)


def load(reference: str, *, offline: bool = False, progress: Progress | None = None) -> Corpus:
    """A built-in corpus `NAME` or `NAME/SPLIT`, `hf:ID[:config][:split][:column]`, or
    `FILE[:column]` (.jsonl, .json, .csv, .parquet, .txt).

    With `offline`, or HF_HUB_OFFLINE set, the Hub is not asked. Raises UnknownNameError,
    MissingFileError, FormatError (file, row and remedy), RequestError for no prompts or a dataset
    that cannot be had, and UnavailableError for a missing package.
    """
    found = _built_in_or_none(reference)
    if found is not None:
        return found
    name, rows, column = _rows(reference, offline, progress)
    if not rows:
        raise RequestError(f"corpus {name} is empty: 0 rows; give at least one prompt")
    chosen = column or next((c for c in _COLUMNS if c in rows[0]), None)
    if chosen is None:
        raise FormatError(
            f"{name}: no column {' or '.join(_COLUMNS)}; name one of "
            f"{', '.join(map(str, rows[0]))} after it, as in FILE:COLUMN"
        )
    if chosen not in rows[0]:
        raise unknown_name("column", chosen, map(str, rows[0]), f"They are those of {name}.")
    texts = []
    for number, row in enumerate(rows, start=1):
        value = row.get(chosen)
        if not isinstance(value, str) or not value.strip():
            raise FormatError(
                f"{name}, row {number}: column {chosen!r} is missing or blank; fill it"
            )
        texts.append(value)
    return Corpus(name, tuple(texts), rows)


def load_pairs(
    reference: str, *, offline: bool = False, progress: Progress | None = None
) -> TrainingPairs:
    """Training pairs: built-in `refusals`, a file, or `hf:ID[:config][:split]`.

    Formats: messages, prompt/completion, prompt/response, Alpaca, GSM8K. Raises as `load` does,
    and FormatError, which lists the formats, for other columns.
    """
    found = _built_in_or_none(reference)
    if found is not None:
        if found.name.partition("/")[0] not in PAIRS:
            raise RequestError(
                f"corpus {found.name!r} holds prompts alone; built-in pairs: {', '.join(PAIRS)}"
            )
        return pairs_of(found.name, found.rows)
    name, rows, column = _rows(reference, offline, progress)
    if column is not None:
        raise RequestError(
            f"{reference}: training pairs take no column ({column!r}); give the file or dataset "
            "alone, with columns such as prompt and response"
        )
    pairs = pairs_of(name, rows)
    if pairs.left_out:
        (progress or Silence()).say(
            f"{name}: {pairs.left_out} of {len(rows)} rows have a blank response and are left out"
        )
    return pairs


def _built_in_or_none(reference: str) -> Corpus | None:
    name, _, split = reference.partition("/")
    return built_in(name, split or None) if name in BUILT_IN else None


def _rows(
    reference: str, offline: bool, progress: Progress | None
) -> tuple[str, tuple[Row, ...], str | None]:
    """Name, rows and the named column of a file or a dataset of the Hub."""
    if reference.startswith("hf:"):
        hub = HubReference.parse(reference)
        return hub.name, read_hub(hub, offline=offline, progress=progress), hub.column
    path, column = _split_reference(reference)
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        raise unknown_name("corpus", reference, BUILT_IN, _HINT)
    return path.name, read_rows(path), column


def _split_reference(reference: str) -> tuple[Path, str | None]:
    if Path(reference).exists() or ":" not in reference:
        return Path(reference), None
    file, _, column = reference.rpartition(":")
    return Path(file), column
