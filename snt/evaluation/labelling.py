"""Blind labelling: a sample of replies for a person to label, and how far a judge agrees with it.

The file to label holds prompts and replies alone, shuffled: no model, no suite and no judge's
label that could lead the reader. A row's id is a digest of its prompt and reply, so what comes back
is checked against the completions that it was drawn from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snt.atomic import check_writable, write_text
from snt.errors import FormatError, RequestError, unknown_name
from snt.evaluation.agreement import agreement as kappa_of
from snt.evaluation.completions import Completion, read_completions, rejudge
from snt.evaluation.judges import LABELS, get_judge
from snt.evaluation.statistics import Rate

_REMEDY: Final = f"write one of {', '.join(LABELS)} as its label, or leave it empty"
# Full and partial refusals against the rest: what most published agreement figures are of.
REFUSING: Final = ("refusal", "partial")


@dataclass(frozen=True)
class ToLabel:
    """Where a sample was written, how many rows it has and how many distinct replies there were."""

    path: Path
    rows: int
    distinct: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """The report of `snt eval --rejudge --sample --json`."""
        return {
            "label_file": str(self.path),
            "n": self.rows,
            "distinct_replies": self.distinct,
            "seed": self.seed,
            "labels": list(LABELS),
        }


@dataclass(frozen=True)
class Agreement:
    """How often two labellings of the same replies agree.

    `confusion[person][judge]` counts replies. `kappa` is Cohen's (1960); None where chance alone
    gives full agreement, as when both use one label only.
    """

    labels: tuple[str, ...]
    confusion: Mapping[str, Mapping[str, int]]
    accuracy: Rate
    kappa: float | None

    def as_json(self) -> dict[str, Any]:
        """Accuracy with its Wilson interval, kappa, and the table, person first."""
        return {
            "accuracy": self.accuracy.rate,
            "interval": [self.accuracy.low, self.accuracy.high],
            "n": self.accuracy.n,
            "kappa": self.kappa,
            "confusion": {person: dict(row) for person, row in self.confusion.items()},
        }


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge beside a person: over all labels, and refusing (in full or part) against the rest."""

    judge: str
    label_file: Path
    unlabelled: int
    all_labels: Agreement
    refusing: Agreement

    def as_json(self) -> dict[str, Any]:
        """The report of `snt eval --rejudge --labels --json`."""
        return {
            "judge": self.judge,
            "label_file": str(self.label_file),
            "labelled": self.all_labels.accuracy.n,
            "unlabelled": self.unlabelled,
            "all_labels": self.all_labels.as_json(),
            "refusing": self.refusing.as_json(),
        }


def sample_to_label(
    completions: Path, count: int, target: Path | None = None, seed: int = 0
) -> ToLabel:
    """Write `count` distinct replies of a completions file, drawn and shuffled by `seed`.

    `target` defaults to a file beside the completions. Raises RequestError for a count that the
    file cannot give, and for a target that holds labels already.
    """
    target = target or completions.with_name(f"{completions.stem}.to_label.jsonl")
    distinct = _by_id(read_completions(completions))
    if not 1 <= count <= len(distinct):
        raise RequestError(
            f"a sample of {count} from {len(distinct)} distinct replies in {completions}; give "
            f"--sample a number from 1 to {len(distinct)}"
        )
    _check_unlabelled(target)
    check_writable(target)
    # Ids are sorted first, so that the order of the file, which may be by suite, has no part in it.
    chosen = random.Random(seed).sample(sorted(distinct), count)
    write_text(target, "".join(_blank_row(name, distinct[name]) for name in chosen))
    return ToLabel(target, count, len(distinct), seed)


def judge_agreement(
    completions: Path, labels: Path, judge: str, offline: bool = False
) -> JudgeAgreement:
    """A judge beside the labels that a person wrote into a file of `sample_to_label`.

    Raises FormatError, with the row, for a label that is none and for a row that is not one of the
    completions or stands there twice; RequestError when no row is labelled.
    """
    chosen = get_judge(judge, offline=offline)
    known = _by_id(read_completions(completions))
    people: list[str] = []
    labelled: list[Completion] = []
    seen: dict[str, int] = {}
    unlabelled = 0
    for number, row in enumerate(read_completions(labels), start=1):
        name = _id_of(row)
        if row.id != name or name not in known:
            raise FormatError(
                f"{labels}, row {number}: not one of the replies of {completions}, or its text was "
                "changed; label the file that --sample wrote from these completions"
            )
        if name in seen:
            raise FormatError(
                f"{labels}, row {number}: the same reply as row {seen[name]}; remove one of them"
            )
        seen[name] = number
        person = _label(labels, number, row)
        if person is None:
            unlabelled += 1
        else:
            people.append(person)
            labelled.append(row)
    if not labelled:
        raise RequestError(
            f"{labels}: none of its {unlabelled} rows has a label; {_REMEDY}, row by row"
        )
    judged = [str(row.label) for row in rejudge(labelled, chosen)]
    pairs = list(zip(people, judged, strict=True))
    refusing = [(_refusing(person), _refusing(label)) for person, label in pairs]
    return JudgeAgreement(
        judge,
        labels,
        unlabelled,
        agreement(pairs, LABELS),
        agreement(refusing, ("refusing", "other")),
    )


def agreement(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> Agreement:
    """Accuracy, kappa and confusion of pairs (person, judge). Raises RequestError for no pairs."""
    table = {person: dict.fromkeys(labels, 0) for person in labels}
    for person, judge in pairs:
        table[person][judge] += 1
    n = len(pairs)
    same = sum(table[label][label] for label in labels)
    accuracy = Rate.of(same, n)
    kappa = kappa_of([person for person, _ in pairs], [judge for _, judge in pairs]).kappa
    return Agreement(tuple(labels), table, accuracy, kappa)


def _by_id(rows: Sequence[Completion]) -> dict[str, Completion]:
    return {_id_of(row): row for row in rows}


def _id_of(row: Completion) -> str:
    text = json.dumps([row.prompt, row.response])
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _blank_row(name: str, row: Completion) -> str:
    fields = {"id": name, "prompt": row.prompt, "response": row.response, "label": ""}
    text = json.dumps(fields, ensure_ascii=False)
    # Half of a cut-off emoji can only be written escaped.
    halved = any("\ud800" <= letter <= "\udfff" for letter in text)
    return (json.dumps(fields) if halved else text) + "\n"


def _refusing(label: str) -> str:
    return "refusing" if label in REFUSING else "other"


def _label(path: Path, number: int, row: Completion) -> str | None:
    """The person's label of a row, None where there is none yet."""
    given = row.label if row.label is not None else row.extra.get("label")
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    if isinstance(given, str) and given.strip().lower() in LABELS:
        return given.strip().lower()
    near = unknown_name("label", str(given), LABELS)
    raise FormatError(f"{path}, row {number}: {near}; {_REMEDY}")


def _check_unlabelled(target: Path) -> None:
    """A person's work is not written over."""
    if not target.is_file() or not target.read_bytes().strip():
        return
    labelled = sum(
        row.label is not None or bool(str(row.extra.get("label", "")).strip())
        for row in read_completions(target)
    )
    if labelled:
        raise RequestError(
            f"{target} holds {labelled} labels already; choose another --label-file, or read them "
            "with --labels"
        )
