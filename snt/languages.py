"""`detect` in several languages: parallel prompts through one model, a mask for each language.

Both corpora of a language are in that language, with the same template, so that a mask tells harm
from no harm and not one language from another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from snt import corpora
from snt.atomic import check_writable
from snt.corpora import Corpus
from snt.detection import Detection, detect
from snt.errors import RequestError
from snt.opening import ModelChoice, open_model
from snt.overlap import Comparison, compare
from snt.preflight import detection_work
from snt.progress import Progress, Silence

CORPUS, AGAINST = "multilingual/harmful", "multilingual/harmless"
# A language names a file and a column.
_NAME = re.compile(r"[\w-]{1,35}")
_UNLIKE = 1.5  # Mean lengths further apart than this deserve a word.


@dataclass(frozen=True)
class LanguageDetection:
    """One detection per language, in the order asked for, and how their masks overlap."""

    detections: Mapping[str, Detection]
    comparison: Comparison

    def as_json(self) -> dict[str, Any]:
        """The report of `snt detect --languages --json`."""
        return {
            "languages": {name: found.as_json() for name, found in self.detections.items()},
            **self.comparison.as_json(),
        }


def languages_asked(option: str | None, corpus: str | None) -> tuple[tuple[str, ...], str | None]:
    """The languages of `--languages`, or of a corpus `FILE:en,it,zh`; and the corpus without them.

    No languages mean one detection as ever. Raises RequestError for languages given twice, or that
    cannot name a column and a file.
    """
    listed, place = None, corpus
    if corpus is not None and not Path(corpus).exists():
        before, colon, columns = corpus.rpartition(":")
        if colon and "," in columns:
            listed, place = columns, before
    if option is not None and listed is not None:
        raise RequestError(f"--languages {option} and the columns {listed} of --corpus: give one")
    listed = option if listed is None else listed
    if listed is None:
        return (), corpus
    names = tuple(name.strip() for name in listed.split(","))
    for name in names:
        if not _NAME.fullmatch(name):
            raise RequestError(
                f"language {name!r} in {listed!r} is not a column's name of letters, digits, "
                "- and _; write them as en,it,zh"
            )
        if names.count(name) > 1:
            raise RequestError(f"language {name!r} stands twice in {listed!r}; give it once")
    return names, place


def detect_languages(
    languages: Sequence[str],
    model: str | None = None,
    *,
    corpus: str | None = None,
    against: str | None = AGAINST,
    output: Path = Path("mask.safetensors"),
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> LanguageDetection:
    """Find the neurons of each language's harmful prompts; the model is loaded once.

    `corpus` and `against` hold one column per language; left out they are the built-in parallel
    corpora. `output` m.safetensors gives m.en.safetensors and so on; `options` are those of
    `detect`. All texts are read before the model is. Raises as `detect` does.
    """
    if not languages:
        raise RequestError("no language to detect in; name columns of the corpus, as in en,it,zh")
    progress = progress or Silence()

    def load(reference: str, language: str) -> Corpus:
        return corpora.load(reference, language=language, offline=offline, progress=progress)

    texts = {name: load(corpus or CORPUS, name) for name in languages}
    others = {name: load(against, name) for name in languages} if against is not None else {}
    paths = {name: language_path(output, name) for name in languages}
    for name in languages:
        check_writable(paths[name])
        if name in others:
            _compare_lengths(name, texts[name], others[name], progress)
    work = detection_work([*texts.values(), *others.values()], options.get("importance", "exact"))
    choice = ModelChoice(model, backend, dtype, system, offline, template=options.get("template"))
    opened = open_model(choice, exact=True, work=work, progress=progress)
    found = {}
    for number, name in enumerate(languages, start=1):
        progress.say(f"language {number} of {len(languages)}: {name}")
        found[name] = detect(
            corpus=texts[name],
            against=others.get(name),
            output=paths[name],
            opened=opened,
            offline=offline,
            progress=progress,
            **options,
        )
    return LanguageDetection(found, compare({name: one.mask for name, one in found.items()}))


def language_path(output: Path, language: str) -> Path:
    """`m.safetensors` -> `m.th.safetensors`."""
    stem = output.name.removesuffix(".safetensors")
    return output.with_name(f"{stem}.{language}.safetensors")


def _compare_lengths(language: str, texts: Corpus, others: Corpus, progress: Progress) -> None:
    mine, theirs = (fmean(map(len, corpus.texts)) for corpus in (texts, others))
    if max(mine, theirs) > _UNLIKE * min(mine, theirs):
        progress.say(
            f"{language}: a prompt of {texts.name} has {mine:.0f} characters on average and one of "
            f"{others.name} {theirs:.0f}; the mask may tell their lengths apart"
        )
