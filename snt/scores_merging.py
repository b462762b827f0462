"""Scores files that belong together: shards of a corpus, several corpora, two sides of a contrast.

Merging is exact, so what matters is that the files measure the same and count no prompt twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from snt.errors import FormatError, MismatchError, RequestError
from snt.scores import Scores
from snt.scores_files import ScoresFile
from snt.tally import check_dropped
from snt.unfinished import KEY as UNFINISHED

# What must be equal for two importances to mean the same.
_ALIKE = ("fingerprint", "importance", "positions", "template", "system_prompt", "backend", "dtype")
ROLES = ("corpus", "against")


@dataclass(frozen=True)
class NamedScores:
    """A scores file and what messages call it."""

    name: str
    file: ScoresFile

    @property
    def role(self) -> str:
        """Which corpus of its detection it scored: "corpus" or "against"."""
        return str(next(iter(self.file.provenance["corpora"])))

    @property
    def corpora(self) -> list[Mapping[str, Any]]:
        """What it says of each corpus in it: name, rows, sha256."""
        described = self.file.provenance["corpora"][self.role]
        return list(described.get("parts", [described]))


def merged(files: Sequence[NamedScores]) -> NamedScores:
    """One scores file of all prompts; of shards, what a detection of the whole would have written.

    The order of the files does not matter. Raises FormatError for metadata that no detection
    writes, MismatchError for files of other models, importances, templates, roles or kinds,
    RequestError for a prompt counted twice or a shard that is missing, TooManyDropped when more
    than 1% of the prompts were dropped.
    """
    if not files:
        raise RequestError("no scores file is given; give those that `snt detect` wrote")
    for one in files:
        _check_metadata(one)
    first = files[0]
    for other in files[1:]:
        check_alike(first, other)
        if other.role != first.role:
            raise MismatchError(
                f"{first.name} holds scores of the {_side(first)} and {other.name} of the "
                f"{_side(other)}; give those of the second after --against"
            )
    described = _corpora(files)
    rows = sum(int(corpus["rows"]) for corpus in described)
    dropped = sum(int(one.file.provenance["prompts_dropped"]) for one in files)
    check_dropped(dropped, rows, str(first.file.provenance["dtype"]))
    scores = reduce(Scores.merge, (one.file.scores for one in files))
    told = first.file.provenance
    common = {
        key: value
        for key, value in told.items()
        if key != "shard" and all(one.file.provenance.get(key) == value for one in files)
    }
    names = " + ".join(str(corpus["name"]) for corpus in described)
    whole = {"name": names, "rows": rows, "parts": described}
    provenance = {
        **common,
        "model": told["model"],
        "corpora": {first.role: dict(described[0]) if len(described) == 1 else whole},
        "prompts_dropped": dropped,
    }
    return NamedScores(first.name, ScoresFile(first.file.anatomy, scores, provenance))


def check_alike(first: NamedScores, other: NamedScores) -> None:
    """Raise MismatchError when the importances of the two files do not mean the same."""
    if first.file.anatomy != other.file.anatomy:
        raise MismatchError(
            f"{first.name} and {other.name} are scores of different models: "
            f"{first.file.anatomy.shape()} and {other.file.anatomy.shape()}"
        )
    for key in _ALIKE:
        one, two = (named.file.provenance.get(key) for named in (first, other))
        if one != two:
            what = "other weights of the same shape" if key == "fingerprint" else f"another {key}"
            raise MismatchError(
                f"{other.name} was made with {what} than {first.name} ({two!s:.40} and "
                f"{one!s:.40}); detect both alike"
            )
    if first.file.kinds != other.file.kinds:
        raise MismatchError(
            f"{first.name} has scores of {', '.join(first.file.kinds)} and {other.name} of "
            f"{', '.join(other.file.kinds)}; detect both with the same --kinds"
        )


def check_apart(first: NamedScores, against: NamedScores) -> None:
    """Raise RequestError when a corpus is on both sides: there is nothing to tell apart."""
    mine = {str(corpus["sha256"]) for corpus in first.corpora}
    shared = next((c for c in against.corpora if str(c["sha256"]) in mine), None)
    if shared is not None:
        raise RequestError(
            f"the corpus {shared['name']!s:.80} is on both sides; give another second corpus"
        )


def _corpora(files: Sequence[NamedScores]) -> list[dict[str, Any]]:
    """Every corpus once, sorted. Raises RequestError when not each prompt is counted once."""
    seen: dict[str, list[NamedScores]] = {}
    described: dict[str, dict[str, Any]] = {}
    for one in files:
        for corpus in one.corpora:
            seen.setdefault(str(corpus["sha256"]), []).append(one)
            described[str(corpus["sha256"])] = dict(corpus)
    for digest, holders in seen.items():
        _check_once(str(described[digest]["name"]), holders)
    rows = sum(int(corpus["rows"]) for corpus in described.values())
    counted = sum(one.file.prompts + int(one.file.provenance["prompts_dropped"]) for one in files)
    if counted != rows:
        raise FormatError(
            f"{', '.join(one.name for one in files)}: the histograms count {counted} prompts and "
            f"the metadata {rows}; detect again"
        )
    return sorted(described.values(), key=lambda corpus: (str(corpus["name"]), corpus["sha256"]))


def _check_once(corpus: str, holders: Sequence[NamedScores]) -> None:
    shards = [one.file.provenance.get("shard") for one in holders]
    names = ", ".join(one.name for one in holders)
    if any(shard is None for shard in shards):
        if len(holders) > 1:
            raise RequestError(f"{names} count the corpus {corpus!r:.80} twice; give one of them")
        return
    plans = {(shard["of"], shard["plan"]) for shard in shards if shard}
    numbers = sorted(shard["number"] for shard in shards if shard)
    if len(plans) > 1:
        raise MismatchError(
            f"{names} are shards of different divisions of {corpus!r:.80}; give those of one"
        )
    twice = next((n for n, after in zip(numbers, numbers[1:], strict=False) if n == after), None)
    if twice is not None:
        raise RequestError(f"shard {twice} of {corpus!r:.80} is given twice among {names}")
    of = next(iter(plans))[0]
    missing = next((n for n in range(1, of + 1) if n not in numbers), None)
    if missing is not None:
        raise RequestError(
            f"shard {missing} of {of} of {corpus!r:.80} is missing ({len(numbers)} given); run "
            f"`snt detect --shard {missing}/{of}` and give its scores too"
        )


def _check_metadata(one: NamedScores) -> None:
    told = one.file.provenance
    if UNFINISHED in told:
        raise RequestError(
            f"{one.name} is of an unfinished detection; finish it with `snt detect --resume`"
        )
    corpora, model, shard = told.get("corpora"), told.get("model"), told.get("shard")
    sound = (
        isinstance(corpora, dict)
        and len(corpora) == 1
        and all(role in ROLES and _is_corpus(corpus) for role, corpus in corpora.items())
        and isinstance(model, dict)
        and all(isinstance(told.get(key), str) for key in ("fingerprint", "importance", "dtype"))
        and _is_count(told.get("prompts_dropped"))
        and (shard is None or _is_shard(shard))
        and bool(one.file.scores.places)
    )
    if not sound:
        raise FormatError(
            f"{one.name} does not say what it measured (model, fingerprint, importance, corpora, "
            "prompts_dropped), or holds no scores; detect again"
        )


def _is_corpus(described: object) -> bool:
    if not isinstance(described, dict) or not _is_count(described.get("rows")):
        return False
    if "parts" in described:
        parts = described["parts"]
        whole = isinstance(parts, list) and len(parts) > 1
        return whole and all(_is_corpus(p) and "parts" not in p for p in parts)
    return all(isinstance(described.get(key), str) for key in ("name", "sha256"))


def _is_shard(shard: object) -> bool:
    if not isinstance(shard, dict):
        return False
    number, of, plan = (shard.get(key) for key in ("number", "of", "plan"))
    counts = type(number) is int and type(of) is int and 1 <= number <= of
    return counts and isinstance(plan, str)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _side(one: NamedScores) -> str:
    return "first corpus" if one.role == "corpus" else "second corpus"
