"""Training pairs: what a model is to answer, read from the formats that data comes in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snt.corpus_files import Row
from snt.errors import FormatError, RequestError

# Format -> the columns it is recognised by; the first that fits is taken.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt/completion": ("prompt", "completion"),
    "prompt/response": ("prompt", "response"),
    "alpaca": ("instruction", "output"),
    "gsm8k": ("question", "answer"),
}


@dataclass(frozen=True)
class TrainingPairs:
    """(prompt, response) in order, with what a report says of them. `name` is never a path.

    `system` is the system message that all rows share, None without one. `left_out` counts the
    rows whose response is blank: there is nothing in them to learn.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    format: str
    system: str | None = None
    left_out: int = 0

    @property
    def sha256(self) -> str:
        """Digest of the texts alone, so that the same pairs are the same data anywhere."""
        digest = hashlib.sha256()
        for texts in [*([] if self.system is None else [[self.system]]), *self.pairs]:
            digest.update(json.dumps(texts).encode() + b"\n")
        return digest.hexdigest()

    def first(self, limit: int | None) -> TrainingPairs:
        """The first `limit` pairs; all of them when it is None."""
        return replace(self, pairs=self.pairs[:limit])

    def describe(self) -> dict[str, Any]:
        """Name, format, counts and digest, as they stand in the metadata of a patch."""
        return {
            "name": self.name,
            "format": self.format,
            "rows": len(self.pairs),
            "left_out": self.left_out,
            "sha256": self.sha256,
        }


def pairs_of(name: str, rows: Sequence[Row]) -> TrainingPairs:
    """Pairs of rows in one of FORMATS, which the first row shows.

    messages: the last user message that an assistant's follows, and that one; a leading system
    message is kept aside. alpaca: instruction, a blank line and the input, where there is one.
    Raises RequestError for no pairs and FormatError for unknown columns or a row that does not fit.
    """
    if not rows:
        raise RequestError(f"{name} is empty: 0 rows; give at least one training pair")
    found = next((f for f, columns in FORMATS.items() if set(columns) <= rows[0].keys()), None)
    if found is None:
        known = "; ".join(f"{f} ({', '.join(columns)})" for f, columns in FORMATS.items())
        raise FormatError(
            f"{name}: columns {', '.join(map(str, rows[0])) or 'none'} are no training pairs; "
            f"rename them to one of these formats: {known}"
        )
    pairs, systems = [], []
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        system, prompt, response = (
            _of_messages(where, row)
            if found == "messages"
            else (None, *_of_columns(where, row, found))
        )
        systems.append(system)
        if response.strip():
            pairs.append((prompt, response))
    if not pairs:
        raise RequestError(f"{name}: every response is blank; there is nothing to learn from it")
    other = next((number for number, s in enumerate(systems, start=1) if s != systems[0]), None)
    if other is not None:
        raise FormatError(
            f"{name}: rows 1 and {other} have different system messages; a tuning has one. "
            "Split the data by system message, or remove it from the rows"
        )
    return TrainingPairs(name, tuple(pairs), found, systems[0], len(rows) - len(pairs))


def _of_columns(where: str, row: Row, format_name: str) -> tuple[str, str]:
    first, second = FORMATS[format_name]
    prompt, response = _text(where, row, first), _text(where, row, second, may_be_blank=True)
    if format_name == "alpaca" and row.get("input") is not None:
        more = _text(where, row, "input", may_be_blank=True)
        prompt = f"{prompt}\n\n{more}" if more.strip() else prompt
    return prompt, response


def _of_messages(where: str, row: Row) -> tuple[str | None, str, str]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise FormatError(f"{where}: messages is no list of role and content; mend it")
    roles = [message.get("role") for message in messages]
    turns = [i for i in range(len(roles) - 1) if roles[i : i + 2] == ["user", "assistant"]]
    if not turns:
        raise FormatError(f"{where}: no user message with an assistant message after it; add one")
    system = _text(where, messages[0], "content") if roles[0] == "system" else None
    prompt, response = messages[turns[-1]], messages[turns[-1] + 1]
    return system, _text(where, prompt, "content"), _text(where, response, "content", True)


def _text(where: str, row: Row, column: str, may_be_blank: bool = False) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        raise FormatError(f"{where}: {column!r} is missing, blank or no text; fill it")
    return value
