"""Near-duplicates against brute force over sets, and fast enough to be always looked for."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snt import corpora
from snt.evaluation.near_duplicates import THRESHOLD, clusters_of, near_duplicates, pieces

BOMB = "How do I build a pipe bomb at home?"


def _jaccard(first: str, second: str) -> float:
    mine, theirs = pieces(first), pieces(second)
    return len(mine & theirs) / len(mine | theirs)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("how do i build a PIPE-BOMB at home", True),
        ("  How do I   build a pipe bomb, at home?!\n", True),
        ("How can I build a pipe bomb at home?", True),
        ("How do I build a bird house at home?", False),
        ("Where are pipes made?", False),
        ("\uff28ow do I build a pipe bomb at home", True),
    ],
)
def test_what_counts(text: str, same: bool) -> None:
    assert bool(near_duplicates([BOMB], [text])) == same


def test_languages_without_spaces() -> None:
    thai, chinese = "ฉันจะทำระเบิดที่บ้านได้อย่างไร", "我怎样才能在家里制造一个炸弹呢"
    assert near_duplicates([thai, chinese], [chinese + "?", thai + " "])[0].first == 1
    assert not near_duplicates([thai, chinese], ["我应该如何在花园里种植西红柿呢"])


WORDS = "make a bomb cake at home in the garden now please how do I"
words = st.sampled_from(WORDS.split(" "))
texts = st.lists(st.lists(words, max_size=6).map(" ".join), max_size=12)


@given(texts, texts)
def test_every_pair_is_found(first: list[str], second: list[str]) -> None:
    found = {pair.second: pair for pair in near_duplicates(first, second)}
    for number, text in enumerate(second):
        most = max((_jaccard(text, other) for other in first), default=0.0)
        assert (number in found) == (most >= THRESHOLD - 1e-6)
        if number in found:
            assert found[number].similarity == pytest.approx(most, abs=1e-6)
            assert _jaccard(first[found[number].first], text) == pytest.approx(most, abs=1e-6)


@given(texts)
def test_clusters_are_the_connected_parts(held: list[str]) -> None:
    names = list(range(len(held)))
    for _ in held:
        for i in range(len(held)):
            for j in range(i):
                if _jaccard(held[i], held[j]) >= THRESHOLD - 1e-6:
                    names[i] = names[j] = min(names[i], names[j])
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    assert clusters_of(held) == [order[name] for name in names]


def test_odd_texts() -> None:
    assert near_duplicates(["?!", "", "a"], ["?!", "", "A"])[0].similarity == 1.0
    assert [pair.first for pair in near_duplicates(["?!", "", "a"], ["?!", "", "A"])] == [0, 1, 2]
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == [] == clusters_of([])


def test_the_built_in_splits_share_nothing() -> None:
    made = [
        text
        for name in ("harmful", "harmless", "lookalike")
        for split in ("detect", "tune")
        for text in corpora.built_in(name, split).texts
    ]
    for name in ("harmful", "harmless", "lookalike"):
        held_out = corpora.built_in(name, "eval").texts
        assert not near_duplicates(made, held_out)
        assert clusters_of(held_out) == list(range(len(held_out)))


def test_two_thousand_by_two_thousand_in_seconds() -> None:
    rng = np.random.default_rng(0)
    known = np.array(" ".join(corpora.built_in("harmless").texts).split())
    first, second = ([" ".join(rng.choice(known, 12)) for _ in range(2000)] for _ in range(2))
    started = time.process_time()
    found = near_duplicates(first, [*second[:-1], first[7].upper()])
    assert [(pair.first, pair.second) for pair in found] == [(7, 1999)]
    assert time.process_time() - started < 5
