"""Merged scores equal one run to the bit, and what does not belong together is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.anatomy import KINDS, Anatomy
from snt.errors import FormatError, MismatchError, RequestError
from snt.mask_cutting import Cut, cut_mask
from snt.scores import NeuronScores, Scores
from snt.scores_files import ScoresFile
from snt.scores_merging import NamedScores, merged
from snt.tally import TooManyDropped

ANATOMY = Anatomy("llama", 2, 16, 24, 4, 2, 4)
CORPUS = {"name": "bad.txt", "rows": 12, "sha256": "c0"}


def _scores(rows: torch.Tensor) -> Scores:
    """Scores of (n, total) importances, the columns of the places side by side."""
    places, at = {}, 0
    for layer in range(2):
        for kind in KINDS:
            size = ANATOMY.size(kind)
            places[layer, kind] = NeuronScores.of(rows[:, at : at + size])
            at += size
    return Scores(places)


def _rows(seed: int, count: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    # Few distinct values, so that ties are common.
    return torch.randint(0, 5, (count, 2 * sum(map(ANATOMY.size, KINDS))), generator=draw).float()


def _named(name: str, rows: torch.Tensor, role: str = "corpus", **told: Any) -> NamedScores:
    provenance = {
        "model": {"id": "pico", "parameters": 20_000},
        "fingerprint": "f0",
        "importance": "exact",
        "template": "t0",
        "system_prompt": None,
        "backend": "full",
        "dtype": "float32",
        "seed": 0,
        "snt": "0",
        "corpora": {role: CORPUS},
        "prompts_dropped": 0,
        **told,
    }
    return NamedScores(name, ScoresFile(ANATOMY, _scores(rows), provenance))


def _shards(rows: torch.Tensor, of: int) -> list[NamedScores]:
    return [
        _named(f"{n}", rows[n - 1 :: of], shard={"number": n, "of": of, "plan": "p"})
        for n in range(1, of + 1)
    ]


def _changed(named: NamedScores, **told: Any) -> NamedScores:
    return replace(named, file=replace(named.file, provenance={**named.file.provenance, **told}))


def _same(one: ScoresFile, other: ScoresFile) -> bool:
    return one.provenance == other.provenance and all(
        torch.equal(getattr(held, part), getattr(other.scores.places[place], part))
        for place, held in one.scores.places.items()
        for part in ("minimum", "worst_rank", "histogram")
    )


@given(st.integers(1, 5), st.integers(0, 99), st.randoms())
def test_shards_in_any_order_are_the_whole(of: int, seed: int, random: Any) -> None:
    rows = _rows(seed)
    whole = _named("whole", rows)
    parts = _shards(rows, of)
    random.shuffle(parts)
    found = merged(parts)
    assert _same(found.file, whole.file)
    cut = Cut.parse(False, select_by="budget=20%")
    one, other = cut_mask(cut, found), cut_mask(cut, whole)
    assert one.provenance == other.provenance and one.counts() == other.counts()


def test_two_corpora_make_one_in_any_order() -> None:
    other = {"name": "worse.txt", "rows": 5, "sha256": "c1"}
    one, two = _named("a", _rows(1)), _named("b", _rows(2, 5), corpora={"corpus": other})
    forth, back = merged([one, two]), merged([two, one])
    assert _same(forth.file, back.file)
    assert forth.file.provenance["corpora"]["corpus"] == {
        "name": "bad.txt + worse.txt", "rows": 17, "parts": [CORPUS, other],
    }  # fmt: skip
    third = _named("c", _rows(3, 5), corpora={"corpus": {**other, "sha256": "c2"}})
    assert len(merged([third, forth]).corpora) == 3
    with pytest.raises(RequestError, match="twice"):
        merged([forth, two])
    assert _same(merged([one]).file, one.file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprint": "f1"}, "other weights"),
        ({"importance": "fast"}, "another importance"),
        ({"template": None}, "another template"),
        ({"system_prompt": "Be kind."}, "another system_prompt"),
        ({"dtype": "float16"}, "another dtype"),
        ({"backend": "int8"}, "another backend"),
        ({"corpora": {"against": CORPUS}}, "after --against"),
    ],
)
def test_what_was_measured_otherwise_is_refused(change: dict[str, Any], words: str) -> None:
    first, second = _shards(_rows(1), 2)
    with pytest.raises(MismatchError, match=words):
        merged([first, _changed(second, **change)])
    if "corpora" not in change:
        apart = {"corpora": {"against": {**CORPUS, "sha256": "c9"}}}
        with pytest.raises(MismatchError, match=words):
            whole = _named("whole", _rows(1))
            cut_mask(Cut.parse(True), whole, _changed(whole, **change, **apart))


def test_other_models_and_kinds_are_refused() -> None:
    first, second = _shards(_rows(1), 2)
    wide = Anatomy("llama", 3, 16, 24, 4, 2, 4)
    with pytest.raises(MismatchError, match="different models"):
        merged([first, replace(second, file=replace(second.file, anatomy=wide))])
    fewer = {place: held for place, held in second.file.scores.places.items() if place[1] == "q"}
    with pytest.raises(MismatchError, match="--kinds"):
        merged([first, replace(second, file=replace(second.file, scores=Scores(fewer)))])


def test_each_prompt_counts_once() -> None:
    rows = _rows(1)
    whole, (one, two, three) = _named("whole", rows), _shards(rows, 3)
    again = {"number": 3, "of": 3, "plan": "q"}
    cases: list[tuple[list[NamedScores], str]] = [
        ([whole, replace(whole, name="copy")], "twice"),
        ([whole, one], "twice"),
        ([one, two, two, three], "shard 2 of 'bad.txt' is given twice"),
        ([one, three], "shard 2 of 3"),
        ([one, two, _changed(three, shard=again)], "different divisions"),
        ([_named("short", rows[:5])], "count 5 prompts and the metadata 12"),
        ([], "no scores file"),
    ]
    for files, words in cases:
        with pytest.raises(RequestError, match=words):
            merged(files)
    cut = Cut.parse(True)
    with pytest.raises(RequestError, match="both sides"):
        cut_mask(cut, whole, _named("other", rows, role="against"))


def test_dropped_prompts_are_summed_and_bounded() -> None:
    rows = _rows(1, 200)
    corpus = {"corpora": {"corpus": {**CORPUS, "rows": 200}}}
    one, two = (_changed(part, **corpus) for part in _shards(rows[:198], 2))
    with pytest.raises(FormatError, match="count 198 prompts and the metadata 200"):
        merged([one, two])
    one, two = (_changed(part, prompts_dropped=1) for part in (one, two))
    assert merged([one, two]).file.provenance["prompts_dropped"] == 2
    few = {"corpora": {"corpus": {**CORPUS, "rows": 100}}}
    one, two = (
        _changed(p, **few, prompts_dropped=1, dtype="float16") for p in _shards(rows[:98], 2)
    )
    with pytest.raises(TooManyDropped, match="2 of 100.*--dtype float32"):
        merged([one, two])


@pytest.mark.parametrize(
    "told",
    [
        {"corpora": None},
        {"corpora": {}},
        {"corpora": {"both": CORPUS}},
        {"corpora": {"corpus": CORPUS, "against": CORPUS}},
        {"corpora": {"corpus": {**CORPUS, "rows": -1}}},
        {"corpora": {"corpus": {**CORPUS, "parts": []}}},
        {"corpora": {"corpus": {**CORPUS, "parts": [CORPUS, 3]}}},
        {"model": "pico"},
        {"fingerprint": 3},
        {"importance": None},
        {"prompts_dropped": True},
        {"shard": 2},
        {"shard": {"number": 3, "of": 2, "plan": "p"}},
    ],
)
def test_metadata_is_not_trusted(told: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="does not say what it measured"):
        merged([_named("liar", _rows(1), **told)])


def test_an_unfinished_detection_and_a_lie_about_the_size() -> None:
    with pytest.raises(RequestError, match="unfinished"):
        merged([_named("half", _rows(1), unfinished={})])
    for total in (None, 10, True, "many"):
        liar = _named("liar", _rows(1), model={"id": "x", "parameters": total})
        with pytest.raises(FormatError, match="parameters"):
            cut_mask(Cut.parse(False), liar)
    with pytest.raises(RequestError, match="no scores of q"):
        whole = _named("whole", _rows(1))
        fewer = {p: held for p, held in whole.file.scores.places.items() if p[1] != "q"}
        only = replace(whole, file=replace(whole.file, scores=Scores(fewer)))
        cut_mask(Cut.parse(False), only)
