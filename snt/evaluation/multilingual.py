"""The multilingual suite: the same prompts in several languages, each beside English."""

from __future__ import annotations

from collections.abc import Sequence

from snt import corpora
from snt.corpora import LANGUAGES
from snt.corpus_files import HubReference
from snt.errors import RequestError, UnknownNameError
from snt.evaluation.suites import Probe

ENGLISH = "en"


def language_probes(
    metric: str, reference: str, languages: Sequence[str], offline: bool = False
) -> list[Probe]:
    """One probe a language, English first where it is among them.

    `reference` has a column per language, or names them: `FILE:en,de`. `languages` empty means
    those named, else those of the built-in corpus. Rows are the same prompt in every column.
    Raises as `corpora.load` does: a missing column, or a blank cell with its row.
    """
    place, named = _named_columns(reference)
    if named and languages:
        raise RequestError(
            f"{metric}: the languages {', '.join(languages)} and the columns {', '.join(named)} of "
            f"{reference} are both given; give one"
        )
    chosen = list(dict.fromkeys(languages or named or LANGUAGES))
    if len(chosen) < 2:
        raise RequestError(
            f"{metric}: one language, {chosen[0]!r}; the multilingual suite compares at least two: "
            "add --languages, as in --languages en,it"
        )
    chosen.sort(key=lambda language: language != ENGLISH)
    found = []
    for language in chosen:
        try:
            corpus = corpora.load(place, language=language, offline=offline)
        except UnknownNameError as error:
            raise UnknownNameError(
                f"{metric}: {error} Name the columns with --languages, or give other prompts with "
                f"--corpus {metric}=FILE, or leave the metric out with {metric}=none"
            ) from error
        found.append(Probe.plain(f"{metric}.{language}", corpus))
    return found


def _named_columns(reference: str) -> tuple[str, tuple[str, ...]]:
    """`FILE:en,de` -> `FILE`, (`en`, `de`)."""
    place, _, columns = reference.rpartition(":")
    if not place or "," not in columns or _hub_without_column(reference):
        return reference, ()
    return place, tuple(name.strip() for name in columns.split(",") if name.strip())


def _hub_without_column(reference: str) -> bool:
    # A slice such as train[:10] has colons and no commas; a comma names columns here too.
    return reference.startswith("hf:") and HubReference.parse(reference).column is None
