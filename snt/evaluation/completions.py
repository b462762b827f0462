"""Saved replies: one JSON object a line, re-judged or compared without running a model again.

A row needs `prompt` and `response`. What else a row holds is kept: the fields that say how the
reply was made become `made_by`, all others `extra`, and writing puts every one back.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, get_args

from snt.atomic import write_text
from snt.errors import FormatError, MissingFileError, RequestError
from snt.evaluation.agreement import agreement
from snt.evaluation.judges import Judge, Label, counts_against

# How the reply was made; a row carries these at its top level (docs: Completions).
MADE_BY: Final = ("model", "template", "system_prompt", "settings")
_TEXT_FIELDS: Final = ("prompt", "response")
_KNOWN: Final = frozenset({*_TEXT_FIELDS, "suite", "id", "label", "labels", *MADE_BY})
_REMEDY: Final = 'every line is one JSON object such as {"prompt": "...", "response": "..."}'


@dataclass(frozen=True)
class Completion:
    """One prompt and its reply.

    `id` is the prompt's name within its suite; `made_by` holds model, template, system_prompt and
    settings; `label` is the first judge's, None before one has seen it, and `labels` holds every
    judge's by name; `extra` is what else the row held.
    """

    prompt: str
    response: str
    suite: str | None = None
    id: str | int | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    label: Label | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """The JSON object of this completion; absent fields are left out."""
        _check_fields(self.made_by, self.extra)
        named = {"suite": self.suite, "id": self.id, "label": self.label}
        present: dict[str, Any] = {k: v for k, v in named.items() if v is not None}
        if self.labels:
            present["labels"] = dict(self.labels)
        texts = {"prompt": self.prompt, "response": self.response}
        return {**self.extra, **self.made_by, **present, **texts}


def read_completions(path: Path) -> list[Completion]:
    """The rows of a JSONL file, in order; empty lines are skipped.

    Raises MissingFileError when there is no such file, and FormatError, with the line's number,
    for a line that is no JSON object, lacks prompt or response or has a field of the wrong type,
    and for a file without rows.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"no completions at {path}; check the path") from None
    except IsADirectoryError:
        raise FormatError(f"{path} is a directory; name the .jsonl file in it") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text (byte {error.start}); {_REMEDY}") from None
    except OSError as error:
        raise RequestError(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error
    # Only "\n" ends a row: replies may hold other Unicode line separators unescaped.
    lines = enumerate(text.split("\n"), start=1)
    rows = [_completion(path, number, line) for number, line in lines if line.strip()]
    if not rows:
        raise FormatError(f"{path} holds no completions; {_REMEDY}")
    return rows


def write_completions(path: Path, rows: Iterable[Completion]) -> Path:
    """Write `rows` as JSONL, atomically; the same rows give the same bytes.

    Raises RequestError when a field is no JSON value or the place cannot be written.
    """
    lines = [_line(number, row) for number, row in enumerate(rows, start=1)]
    return write_text(Path(path), "".join(f"{line}\n" for line in lines))


def rejudge(rows: Iterable[Completion], *judges: Judge) -> list[Completion]:
    """`rows` in the same order, each with what `judges` say of it; the first one's label counts.

    The labels of other judges that a row held already stay.
    """
    judged = list(rows)
    for judge in reversed(judges):
        labels = judge.labels([(row.prompt, row.response) for row in judged])
        judged = [
            replace(row, label=label, labels={**row.labels, judge.name: label})
            for row, label in zip(judged, labels, strict=True)
        ]
    return judged


def labels_document(rows: Sequence[Completion], judges: Sequence[Judge]) -> dict[str, Any]:
    """How often each of `judges` gave each label, and how far the first two agree on refusals."""
    counts = {
        judge.name: dict(sorted(Counter(row.labels[judge.name] for row in rows).items()))
        for judge in judges
    }
    document: dict[str, Any] = {
        "judge": judges[0].name,
        "n": len(rows),
        "labels": counts[judges[0].name],
        "judges": counts,
    }
    if len(judges) > 1:
        one, other = (
            [counts_against(row.labels[judge.name], judge.scores_harm) for row in rows]
            for judge in judges[:2]
        )
        document["agreement"] = agreement(one, other).as_json()
    return document


def _line(number: int, row: Completion) -> str:
    try:
        fields = row.as_row()
        line = json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False)
        # Half of a cut-off emoji is a lone surrogate, which only an escape can carry.
        escaped = not line.isascii() and any("\ud800" <= c <= "\udfff" for c in line)
        return json.dumps(fields, sort_keys=True, allow_nan=False) if escaped else line
    except (TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"completion {number} cannot be written as JSON: {error}; "
            "use text, finite numbers, lists and objects in its fields"
        ) from error


def _completion(path: Path, number: int, line: str) -> Completion:
    row = _object(path, number, line)
    for key in _TEXT_FIELDS:
        if key not in row:
            raise FormatError(f"{path}, line {number}: no {key!r}; {_REMEDY}")
        if not isinstance(row[key], str):
            raise FormatError(f"{path}, line {number}: {key!r} is {_kind(row[key])}; give a string")
    label, labels = row.get("label"), row.get("labels")
    # Another tool's label stays among the extra fields until a judge's takes its place.
    foreign = set()
    if not (isinstance(label, str) and label in get_args(Label)):
        foreign.add("label")
    if not (isinstance(labels, dict) and all(one in get_args(Label) for one in labels.values())):
        foreign.add("labels")
    return Completion(
        prompt=row["prompt"],
        response=row["response"],
        suite=_suite(path, number, row),
        id=_id(path, number, row),
        made_by={key: row[key] for key in MADE_BY if key in row},
        label=None if "label" in foreign else label,
        labels={} if "labels" in foreign or labels is None else labels,
        extra={k: v for k, v in row.items() if k not in _KNOWN or k in foreign},
    )


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}, line {number}: not JSON ({error}); {_REMEDY}") from None
    if not isinstance(row, dict):
        raise FormatError(f"{path}, line {number}: {_kind(row)}, not an object; {_REMEDY}")
    return row


def _suite(path: Path, number: int, row: Mapping[str, Any]) -> str | None:
    value = row.get("suite")
    if value is None or isinstance(value, str):
        return value
    raise FormatError(f"{path}, line {number}: 'suite' is {_kind(value)}; give a string")


def _id(path: Path, number: int, row: Mapping[str, Any]) -> str | int | None:
    value = row.get("id")
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    raise FormatError(
        f"{path}, line {number}: 'id' is {_kind(value)}; give a string or a whole number"
    )


def _check_fields(made_by: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    stray = made_by.keys() - set(MADE_BY)
    if stray:
        raise RequestError(
            f"made_by holds {', '.join(sorted(stray))}; it takes {', '.join(MADE_BY)}: "
            "put the rest into settings"
        )
    clash = extra.keys() & (_KNOWN - {"label", "labels"})
    if clash:
        raise RequestError(
            f"extra holds {', '.join(sorted(clash))}, which a completion has a field for; use that"
        )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
