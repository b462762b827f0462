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
LANGUAGES = ("en", "it", "zh", "th", "vi")
# Columns of text, the first for who names none.
BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "harmful": ("prompt",),
    "refusals": ("prompt",),
    "harmless": ("prompt",),
    "lookalike": ("prompt",),
    "prose": ("text",),
    "multilingual": LANGUAGES,
}
# What a corpus is parted by, and into what. The parallel one has no splits.
_PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "multilingual": ("kind", ("harmful", "harmless"))
}
PAIRS = ("refusals",)  # The built-in corpora that hold responses too.
_COLUMNS = ("prompt", "text", "question", "instruction")
_HINT = "A file is given by its path, a dataset of the Hub as hf:ID."


@dataclass(frozen=True)
class Corpus:
    """Texts in order, with what a report says of them. `name` is never a path.

    `language` is a tag such as `th`, or None where nobody said which language the texts are in.
    """

    name: str
    texts: tuple[str, ...]
    rows: tuple[Row, ...]
    language: str | None = None

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
        """Name, row count, digest and language, as they stand in the metadata of a mask."""
        said = {} if self.language is None else {"language": self.language}
        return {"name": self.name, "rows": len(self.texts), "sha256": self.sha256, **said}


def built_in(name: str, part: str | None = None, column: str | None = None) -> Corpus:
    """A corpus of the wheel, whole or one part of it: a split, or `harmful` or `harmless` of the
    parallel one, whose columns are LANGUAGES.

    Raises UnknownNameError, and RequestError for a part that the corpus does not have.
    """
    if name not in BUILT_IN:
        raise unknown_name("corpus", name, BUILT_IN, _HINT)
    key, parts = _PARTS.get(name, ("split", SPLITS))
    if part is not None and part not in parts:
        raise unknown_name("split" if key == "split" else "part", part, parts)
    chosen = column or BUILT_IN[name][0]
    if chosen not in BUILT_IN[name]:
        raise unknown_name("column", chosen, BUILT_IN[name], f"They are those of {name}.")
    every = read_rows(Path(__file__).parent / "data" / f"{name}.jsonl")
    rows = tuple(r for r in every if part is None or r[key] == part)
    if not rows:
        held = sorted({str(r[key]) for r in every})
        raise RequestError(f"corpus {name!r} has no split {part!r}; it has {', '.join(held)}")
    label = name if part is None else f"{name}/{part}"
    language = chosen if chosen in LANGUAGES else "en"
    return Corpus(label, tuple(r[chosen] for r in rows), rows, language)


def load(
    reference: str | Corpus,
    *,
    language: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """A built-in corpus `NAME[/PART][:COLUMN]`, `hf:ID[:config][:split][:column]`, or
    `FILE[:column]` (.jsonl, .json, .csv, .parquet, .txt). A corpus is returned as it is.

    `language` is the column to read where a corpus has one for each language. With `offline`, or
    HF_HUB_OFFLINE set, the Hub is not asked. Raises UnknownNameError, MissingFileError, FormatError
    (file, row and remedy), RequestError for no prompts or a dataset that cannot be had, and
    UnavailableError for a missing package.
    """
    if isinstance(reference, Corpus):
        return reference
    found = _built_in_or_none(reference, language)
    if found is not None:
        return found
    name, rows, column = _rows(reference, offline, progress)
    if language is not None and column is not None:
        raise RequestError(
            f"{reference}: the column {column!r} is named and the language {language!r} asked for; "
            "leave the column out"
        )
    column = language or column
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
    return Corpus(name, tuple(texts), rows, language)


def load_pairs(
    reference: str, *, offline: bool = False, progress: Progress | None = None
) -> TrainingPairs:
    """Training pairs: built-in `refusals`, a file, or `hf:ID[:config][:split]`.

    Formats: messages, prompt/completion, prompt/response, Alpaca, GSM8K. Raises as `load` does,
    and FormatError, which lists the formats, for other columns.
    """
    found = _built_in_or_none(reference)
    if found is not None:
        if ":" in reference:
            raise RequestError(f"{reference}: training pairs take no column; leave it out")
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


def check_same_language(first: Corpus, second: Corpus) -> None:
    """Raises RequestError when two corpora to be compared are known to differ in language."""
    if first.language and second.language and first.language != second.language:
        raise RequestError(
            f"the corpus {first.name} is in {first.language!r} and {second.name} in "
            f"{second.language!r}: their difference would be the language. Give --against "
            f"prompts in {first.language!r}"
            + (f": multilingual/harmless:{first.language}" if first.language in LANGUAGES else "")
        )


def _built_in_or_none(reference: str, language: str | None = None) -> Corpus | None:
    place, _, column = reference.partition(":")
    name, _, part = place.partition("/")
    if name not in BUILT_IN:
        return None
    return built_in(name, part or None, language or column or None)


def _rows(
    reference: str, offline: bool, progress: Progress | None
) -> tuple[str, tuple[Row, ...], str | None]:
    """Name, rows and the named column of a file or a dataset of the Hub."""
    if reference.startswith("hf:"):
        hub = HubReference.parse(reference)
        return hub.name, read_hub(hub, offline=offline, progress=progress), hub.column
    path, column = split_reference(reference)
    if not path.exists() and not path.suffix and len(path.parts) == 1:
        raise unknown_name("corpus", reference, BUILT_IN, _HINT)
    return path.name, read_rows(path), column


def split_reference(reference: str) -> tuple[Path, str | None]:
    """`FILE[:column]` taken apart."""
    if Path(reference).exists() or ":" not in reference:
        return Path(reference), None
    file, _, column = reference.rpartition(":")
    return Path(file), column
