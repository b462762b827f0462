"""Prompts and training pairs: built-in corpora with fixed splits, and the user's own files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.errors import FormatError, MissingFileError, RequestError, unknown_name

SPLITS = ("detect", "tune", "eval")
BUILT_IN: Mapping[str, str] = {
    "harmful": "prompt",
    "refusals": "prompt",
    "harmless": "prompt",
    "lookalike": "prompt",
    "prose": "text",
}
_COLUMNS = ("prompt", "text", "question", "instruction")


@dataclass(frozen=True)
class Corpus:
    """Texts in order, with what a report says of them. `name` is never a path."""

    name: str
    texts: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def sha256(self) -> str:
        """Digest of the texts alone, so that the same prompts are the same corpus anywhere."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(json.dumps(text).encode() + b"\n")
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Name, row count and digest, as they stand in the metadata of a mask."""
        return {"name": self.name, "rows": len(self.texts), "sha256": self.sha256}


def built_in(name: str, split: str | None = None) -> Corpus:
    """A corpus of the wheel, whole or one of its splits. Raises UnknownNameError."""
    if name not in BUILT_IN:
        raise unknown_name("corpus", name, BUILT_IN, "A file is given by its path.")
    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    path = Path(__file__).parent / "data" / f"{name}.jsonl"
    rows = tuple(r for r in _jsonl(path) if split is None or r["split"] == split)
    label = name if split is None else f"{name}/{split}"
    return Corpus(label, tuple(r[BUILT_IN[name]] for r in rows), rows)


def from_file(reference: str) -> Corpus:
    """Read `FILE[:column]`: .jsonl, .json (a list of objects), .csv or .txt (a prompt a line).

    Raises MissingFileError, FormatError (file, row and remedy) or RequestError for no prompts.
    """
    path, column = _split_reference(reference)
    if not path.is_file():
        raise MissingFileError(f"corpus file {path} does not exist; give a file or a built-in name")
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _txt}.get(path.suffix)
    if reader is None:
        raise RequestError(f"{path}: cannot read {path.suffix!r}; use .jsonl, .json, .csv or .txt")
    try:
        rows = tuple(reader(path))
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text: {error}; convert it first") from error
    if not rows:
        raise RequestError(f"corpus {path} is empty: 0 rows; give at least one prompt")
    chosen = column or next((c for c in _COLUMNS if c in rows[0]), None)
    if chosen is None:
        raise FormatError(
            f"{path}: no column {' or '.join(_COLUMNS)}; name one of "
            f"{', '.join(map(str, rows[0]))} as {path.name}:COLUMN"
        )
    texts = []
    for number, row in enumerate(rows, start=1):
        value = row.get(chosen)
        if not isinstance(value, str) or not value.strip():
            raise FormatError(
                f"{path}, row {number}: column {chosen!r} is missing or blank; fill it"
            )
        texts.append(value)
    return Corpus(path.name, tuple(texts), rows)


def load(reference: str) -> Corpus:
    """A built-in corpus `NAME` or `NAME/SPLIT`, else `FILE[:column]`."""
    name, _, split = reference.partition("/")
    if name in BUILT_IN:
        return built_in(name, split or None)
    path, _ = _split_reference(reference)
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        raise unknown_name("corpus", reference, BUILT_IN, "A file is given by its path.")
    return from_file(reference)


def _split_reference(reference: str) -> tuple[Path, str | None]:
    if Path(reference).exists() or ":" not in reference:
        return Path(reference), None
    file, _, column = reference.rpartition(":")
    return Path(file), column


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise FormatError(
                    f"{path}, line {number}: not JSON ({error.msg}); mend it"
                ) from error
            yield _as_object(path, number, row)


def _json(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{path}: not JSON, line {error.lineno} ({error.msg}); mend it"
        ) from error
    if not isinstance(rows, list):
        raise FormatError(f"{path}: {type(rows).__name__} at the top; a list of objects is needed")
    for number, row in enumerate(rows, start=1):
        yield _as_object(path, number, row)


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _txt(path: Path) -> Iterator[Mapping[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield {"text": line.strip()}


def _as_object(path: Path, number: int, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise FormatError(f"{path}, row {number}: {type(row).__name__}, not an object; mend it")
    return row
