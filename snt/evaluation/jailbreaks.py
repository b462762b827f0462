"""The jailbreak suite: how far a model's refusals hold when the same requests are dressed up.

For measuring one's own model. Templates and test cases are the user's files; none come with snt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt import corpora
from snt.corpora import Corpus
from snt.corpus_files import read_rows
from snt.errors import FormatError, MissingFileError, RequestError
from snt.evaluation.gcg import GcgSettings
from snt.evaluation.suites import METRICS, Asked, Probe

SLOTS = ("{prompt}", "[INSERT PROMPT HERE]")
_SLOT = re.compile("|".join(map(re.escape, SLOTS)))
_COLUMNS = ("template", "prompt", "text", "jailbreak")
_NAMES = ("name", "id", "title")


@dataclass(frozen=True)
class JailbreakSettings:
    """What is tried: a file of templates, a file of test cases, suffixes to be searched for."""

    templates: str | None = None
    test_cases: str | None = None
    gcg: GcgSettings | None = None

    def check(self) -> None:
        """Raises RequestError when nothing is to be tried."""
        if self.templates is None and self.test_cases is None and self.gcg is None:
            raise RequestError(
                "the jailbreak suite has nothing to try; give --templates FILE, --test-cases FILE "
                "(HarmBench's test_cases.json) or --gcg-steps N"
            )
        if self.gcg is not None:
            self.gcg.check()


@dataclass(frozen=True)
class Template:
    """A text around a request. `text` has at least one slot; `name` is what reports call it."""

    name: str
    text: str

    def filled(self, request: str) -> str:
        """The template with the request in every slot."""
        return _SLOT.sub(lambda _: request, self.text)


def template_probe(reference: str, requests: Corpus) -> Probe:
    """Every template around every request, templates within requests."""
    found = read_templates(reference)
    asked = tuple(
        Asked(template.filled(request), row, template.name, request)
        for row, request in enumerate(requests.texts)
        for template in found
    )
    digest = hashlib.sha256(json.dumps([template.text for template in found]).encode()).hexdigest()
    described = {
        "name": corpora.split_reference(reference)[0].name,
        "rows": len(found),
        "sha256": digest,
    }
    return Probe("template_attack_success", requests, asked, {"templates": described})


def read_templates(reference: str) -> tuple[Template, ...]:
    """Templates of `FILE[:column]`: .jsonl, .json, .csv, .parquet, or .txt with one a line.

    A .json file may also be a list of texts, or an object of names and texts. A row's `name`, `id`
    or `title` names its template, else its number does. Raises MissingFileError, and FormatError
    with the row for a template that is blank, lacks a slot or shares its name.
    """
    path, column = corpora.split_reference(reference)
    found: list[Template] = []
    for number, (name, text) in enumerate(_texts(path, column), start=1):
        if not isinstance(text, str) or not text.strip():
            raise FormatError(f"{path}, row {number}: the template is missing or blank; fill it")
        if not _SLOT.search(text):
            raise FormatError(
                f"{path}, row {number}: the template {text[:60]!r} has no slot for the request; "
                f"write {' or '.join(SLOTS)} where it belongs"
            )
        name = str(name) if name is not None else f"template {number}"
        if any(other.name == name for other in found):
            raise FormatError(f"{path}, row {number}: a second template named {name!r}; rename it")
        found.append(Template(name, text))
    if not found:
        raise FormatError(f"{path} holds no template; give at least one with a slot {SLOTS[0]}")
    return tuple(found)


def cases_probe(reference: str) -> Probe:
    """The test cases of a HarmBench file, each behaviour's together: {behavior_id: [case, ...]}.

    Raises MissingFileError, and FormatError with the behaviour for anything else, a blank case
    included.
    """
    path = Path(reference)
    if not path.is_file():
        raise MissingFileError(f"test-case file {path} does not exist; give HarmBench's JSON file")
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}; mend it") from error
    if not isinstance(document, dict) or not document:
        raise FormatError(
            f"{path} is no test-case file; give an object of behaviours and their cases, as in "
            '{"behavior_id": ["case", ...]}'
        )
    asked: list[Asked] = []
    for row, (behaviour, cases) in enumerate(document.items()):
        for number, case in enumerate(_cases(path, behaviour, cases), start=1):
            if not isinstance(case, str) or not case.strip():
                kind = "blank" if isinstance(case, str) else f"no text ({type(case).__name__})"
                raise FormatError(
                    f"{path}, behaviour {behaviour!r}, case {number} is {kind}; give text, or take "
                    "the case out (pictures cannot be shown to a language model)"
                )
            asked.append(Asked(case, row, behaviour))
    # A behaviour is a row, so that a limit takes whole behaviours and sampling does too.
    texts = tuple("\n".join(cases) for cases in document.values())
    rows = tuple({"behavior_id": behaviour} for behaviour in document)
    return Probe("test_case_attack_success", Corpus(path.name, texts, rows), tuple(asked))


def jailbreak_probes(
    settings: JailbreakSettings, named: Mapping[str, str], offline: bool = False
) -> list[Probe]:
    """The probes of the chosen attacks; that of GCG without prompts, which a model must give.

    `named` are the user's corpora by metric. Raises RequestError and children.
    """
    settings.check()
    found = []
    if settings.templates is not None:
        requests = _requests("template_attack_success", named, offline)
        found.append(template_probe(settings.templates, requests))
    if settings.test_cases is not None:
        found.append(cases_probe(settings.test_cases))
    if settings.gcg is not None:
        requests = settings.gcg.chosen(_requests("gcg_attack_success", named, offline))
        found.append(Probe("gcg_attack_success", requests, ()))
    return found


def _requests(metric: str, named: Mapping[str, str], offline: bool) -> Corpus:
    return corpora.load(named.get(metric, str(METRICS[metric].corpus)), offline=offline)


def _cases(path: Path, behaviour: str, cases: Any) -> Sequence[Any]:
    if not isinstance(cases, list) or not cases:
        raise FormatError(
            f"{path}, behaviour {behaviour!r}: no list of cases; give at least one, or take it out"
        )
    return cases


def _texts(path: Path, column: str | None) -> list[tuple[Any, Any]]:
    """Names, None where there is none, and texts of a template file."""
    if path.suffix.lower() == ".json" and path.is_file():
        try:
            document = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is not JSON: {error}; mend it") from error
        if isinstance(document, dict):
            return list(document.items())
        if isinstance(document, list) and all(isinstance(item, str) for item in document):
            return [(None, text) for text in document]
    rows = read_rows(path)
    found: list[tuple[Any, Any]] = []
    for number, row in enumerate(rows, start=1):
        key = column or next((name for name in _COLUMNS if name in row), None)
        if key is None or key not in row:
            wanted = repr(column) if column else " or ".join(_COLUMNS)
            raise FormatError(
                f"{path}, row {number}: no column {wanted}; name one of "
                f"{', '.join(map(str, row))} after the file, as in FILE:COLUMN"
            )
        named = next((row[name] for name in _NAMES if row.get(name) is not None), None)
        found.append((named, row[key]))
    return found
