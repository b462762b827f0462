"""Held out: whether what a model was made from is among the prompts that it is judged on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from snt import corpora
from snt.corpora import BUILT_IN, Corpus
from snt.errors import FormatError, RequestError
from snt.evaluation.near_duplicates import THRESHOLD, clusters_of, near_duplicates
from snt.progress import Progress, Silence

MOST: Final = 0.05  # share of an evaluation corpus that may be near-duplicates
_SHOWN: Final = 3
_LONGEST: Final = 70
_DEEPEST: Final = 20


@dataclass(frozen=True)
class Match:
    """A prompt to be judged on and the text it is a near-duplicate of; rows count from 1."""

    row: int
    text: str
    source: str
    source_row: int
    source_text: str
    similarity: float

    def as_json(self) -> dict[str, Any]:
        """The two rows, without their texts: these may be harmful."""
        return {
            "row": self.row,
            "source": self.source,
            "source_row": self.source_row,
            "similarity": self.similarity,
        }


@dataclass(frozen=True)
class Overlap:
    """Near-duplicates in one metric's corpus: of what the model was made from, and within.

    `clusters` is how many groups of near-duplicates its `n` prompts form.
    """

    metric: str
    corpus: str
    n: int
    clusters: int
    matches: tuple[Match, ...]

    @property
    def share(self) -> float:
        """Share of the prompts that are near-duplicates of a source."""
        return len(self.matches) / self.n

    def as_json(self) -> dict[str, Any]:
        """Counts, and every match."""
        return {
            "corpus": self.corpus,
            "n": self.n,
            "clusters": self.clusters,
            "near_duplicates": len(self.matches),
            "share": self.share,
            "matches": [match.as_json() for match in self.matches],
        }


@dataclass(frozen=True)
class HeldOut:
    """What was compared with what. `missing` names corpora whose texts could not be had."""

    overlaps: Mapping[str, Overlap]
    sources: tuple[str, ...]
    missing: tuple[str, ...]
    forced: bool

    def as_json(self) -> dict[str, Any]:
        """By metric the overlaps; the corpora compared and those that were not."""
        return {
            "threshold": THRESHOLD,
            "most": MOST,
            "compared_with": list(self.sources),
            "not_compared": list(self.missing),
            "forced": self.forced,
            "metrics": {metric: overlap.as_json() for metric, overlap in self.overlaps.items()},
        }


@dataclass(frozen=True)
class _Named:
    """A corpus that a file names as one it was made from."""

    name: str
    rows: int
    sha256: str
    language: str | None


@dataclass(frozen=True)
class _Texts:
    name: str
    texts: tuple[str, ...]
    digests: frozenset[str]


def check_held_out(
    provenance: Iterable[Mapping[str, Any]],
    evaluated: Mapping[str, Corpus],
    *,
    given: Sequence[str] = (),
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> HeldOut:
    """Compare the corpora to be judged on with those that masks and patches were made from.

    `provenance` is their metadata; `given` are references to corpora that it cannot lead to, files
    of the user's among them. Built-in corpora are found by their names. Raises RequestError when
    more than 5% of a corpus are near-duplicates, unless `force`; and whatever reading `given` does.
    """
    progress = progress or Silence()
    named = {corpus.sha256: corpus for made in provenance for corpus in _named(made)}
    sources = [_given(reference, offline, progress) for reference in given]
    missing = []
    for corpus in named.values():
        if any(corpus.sha256 in source.digests for source in sources):
            continue
        found = _built_in(corpus)
        if found is None:
            missing.append(corpus)
        else:
            sources.append(found)
    overlaps = {
        metric: _overlap(metric, corpus, sources, named) for metric, corpus in evaluated.items()
    }
    over = [overlap for overlap in overlaps.values() if overlap.share > MOST]
    if over and not force:
        raise RequestError(_refusal(over[0]))
    for overlap in over:
        progress.say(f"warning: {_counted(overlap)}; measured all the same, as --force asks")
    known = [corpus for corpus in missing if not _is_evaluated(corpus, evaluated)]
    for name in dict.fromkeys(corpus.name for corpus in known):
        progress.say(
            f"not compared with {name}, which the model was made from; --check-against FILE does"
        )
    compared = dict.fromkeys(source.name for source in sources)
    return HeldOut(
        overlaps, tuple(compared), tuple(dict.fromkeys(c.name for c in known)), bool(over)
    )


def _overlap(
    metric: str, corpus: Corpus, sources: Sequence[_Texts], named: Mapping[str, _Named]
) -> Overlap:
    best: dict[int, Match] = {}
    for source in sources:
        for pair in near_duplicates(source.texts, corpus.texts):
            held = best.get(pair.second)
            if held is None or pair.similarity > held.similarity:
                best[pair.second] = Match(
                    pair.second + 1,
                    corpus.texts[pair.second],
                    source.name,
                    pair.first + 1,
                    source.texts[pair.first],
                    pair.similarity,
                )
    if corpus.sha256 in named:
        # The very corpus; its texts are here even where the source's were not found.
        name = named[corpus.sha256].name
        for number, text in enumerate(corpus.texts):
            best[number] = Match(number + 1, text, name, number + 1, text, 1.0)
    matches = tuple(best[number] for number in sorted(best))
    clusters = max(clusters_of(corpus.texts), default=-1) + 1
    return Overlap(metric, corpus.name, len(corpus.texts), clusters, matches)


def _refusal(overlap: Overlap) -> str:
    shown = sorted(overlap.matches, key=lambda match: -match.similarity)[:_SHOWN]
    pairs = "; ".join(
        f"row {match.row} {_short(match.text)} and {match.source} row {match.source_row} "
        f"{_short(match.source_text)} ({match.similarity:.2f})"
        for match in shown
    )
    return (
        f"{_counted(overlap)}, and at most {MOST:.0%} may be: {pairs}. Take them out of the "
        "corpus, give another with --corpus, or measure all the same with --force"
    )


def _counted(overlap: Overlap) -> str:
    return (
        f"{overlap.metric}: {len(overlap.matches)} of {overlap.n} prompts of {overlap.corpus} "
        f"({overlap.share:.1%}) are near-duplicates of what the model was made from"
    )


def _short(text: str) -> str:
    return repr(_printable(text))


def _printable(text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


def _is_evaluated(corpus: _Named, evaluated: Mapping[str, Corpus]) -> bool:
    return any(corpus.sha256 == held.sha256 for held in evaluated.values())


def _named(value: Any, depth: int = 0) -> Iterator[_Named]:
    """Every corpus that metadata describes, wherever it stands; hostile metadata names none."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        name, rows, digest = value.get("name"), value.get("rows"), value.get("sha256")
        if isinstance(name, str) and isinstance(rows, int) and isinstance(digest, str):
            language = value.get("language")
            # Names reach the terminal, and a file may say anything.
            yield _Named(
                _printable(name), rows, digest, language if isinstance(language, str) else None
            )
        for item in value.values():
            yield from _named(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item, depth + 1)


def _built_in(corpus: _Named) -> _Texts | None:
    name, _, part = corpus.name.partition("/")
    if name not in BUILT_IN:
        return None
    column = corpus.language if corpus.language in BUILT_IN[name] else None
    try:
        found = corpora.built_in(name, part or None, column)
    except RequestError:
        return None  # A part or a language that another version had.
    return _Texts(corpus.name, found.first(max(corpus.rows, 0)).texts, frozenset())


def _given(reference: str, offline: bool, progress: Progress) -> _Texts:
    """The texts of a reference, be it prompts or training pairs, and its digests as either."""
    failed: RequestError | None = None
    name, digests = reference, set()
    texts: tuple[str, ...] = ()
    try:
        corpus = corpora.load(reference, offline=offline, progress=progress)
        name, texts = corpus.name, corpus.texts
        digests.add(corpus.sha256)
    except FormatError as error:
        failed = error
    try:
        pairs = corpora.load_pairs(reference, offline=offline)
        name, texts = pairs.name, texts or tuple(prompt for prompt, _ in pairs.pairs)
        digests.add(pairs.sha256)
    except RequestError:
        # Prompts alone, which is as good; but what is neither is the user's to mend.
        if failed is not None:
            raise failed from None
    return _Texts(name, texts, frozenset(digests))
