"""What a model was made from, found in its metadata and looked for among the prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snt import corpora
from snt.corpora import Corpus
from snt.errors import FormatError, RequestError
from snt.evaluation.held_out import check_held_out
from snt.progress import Silence

TUNED = corpora.built_in("refusals", "tune")
PAIRS = corpora.load_pairs("refusals/tune")
MADE = {"data": PAIRS.describe(), "retain": [corpora.built_in("harmless", "tune").describe()]}


class Heard(Silence):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, text: str) -> None:
        self.words.append(text)


def _corpus(*texts: str) -> Corpus:
    return Corpus("mine.jsonl", texts, tuple({"prompt": text} for text in texts))


def _with_leaks(count: int, of: int) -> Corpus:
    fresh = corpora.built_in("harmful", "eval").texts
    return _corpus(*(text.upper() for text in TUNED.texts[:count]), *fresh[: of - count])


def test_built_in_corpora_are_found_by_the_names_in_the_metadata() -> None:
    found = check_held_out([MADE], {"non_refusal": _with_leaks(2, 50)})
    assert found.sources == ("refusals/tune", "harmless/tune") and not found.missing
    overlap = found.overlaps["non_refusal"]
    assert (overlap.share, overlap.n, overlap.clusters) == (0.04, 50, 50)
    assert [(m.row, m.source, m.source_row) for m in overlap.matches] == [
        (1, "refusals/tune", 1),
        (2, "refusals/tune", 2),
    ]
    told = found.as_json()
    assert told["metrics"]["non_refusal"]["near_duplicates"] == 2
    # Harmful prompts stay out of the report.
    assert TUNED.texts[0].upper() not in str(told)


def test_above_five_percent_is_refused_unless_forced() -> None:
    corpus = _with_leaks(6, 100)
    with pytest.raises(RequestError, match=r"6 of 100 prompts of mine.jsonl \(6.0%\)") as caught:
        check_held_out([MADE], {"over_refusal": corpus})
    said = str(caught.value)
    assert "row 1 " in said and "refusals/tune row 1 " in said and "--force" in said
    assert said.count("refusals/tune row") == 3
    heard = Heard()
    found = check_held_out([MADE], {"over_refusal": corpus}, force=True, progress=heard)
    assert found.forced and found.overlaps["over_refusal"].share == 0.06
    assert any("measured all the same" in words for words in heard.words)
    assert not check_held_out([MADE], {"x": _with_leaks(5, 100)}, force=True).forced


def test_a_file_corpus_is_compared_where_its_path_is_given(tmp_path: Path) -> None:
    texts = [f"Tell me about the number {word}" for word in ("seven", "twelve", "ninety")]
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(texts) + "\n")
    made = {"corpora": {"corpus": corpora.load(str(path)).describe()}, "parents": [MADE]}
    evaluated = {"non_refusal": _corpus(texts[2] + "?", *TUNED.texts[:0], *"abcdefghijklmnopqrstu")}
    heard = Heard()
    found = check_held_out([made], evaluated, progress=heard)
    assert found.missing == ("mine.txt",) and not found.overlaps["non_refusal"].matches
    assert any("mine.txt" in words and "--check-against" in words for words in heard.words)
    found = check_held_out([made], evaluated, given=[str(path)])
    assert not found.missing and found.overlaps["non_refusal"].matches[0].source_row == 3


def test_the_very_corpus_is_known_by_its_digest() -> None:
    corpus = _corpus("One thing", "Another thing")
    with pytest.raises(RequestError, match=r"2 of 2 prompts .* \(100.0%\)"):
        check_held_out([{"corpora": {"corpus": corpus.describe()}}], {"over_refusal": corpus})


def test_pairs_of_the_user_match_by_their_own_digest(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Say the secret word"}, '
                    '{"role": "assistant", "content": "No."}]}\n')  # fmt: skip
    made = {"data": corpora.load_pairs(str(path)).describe()}
    with pytest.raises(RequestError, match="pairs.jsonl row 1"):
        check_held_out([made], {"m": _corpus("say the secret word!")}, given=[str(path)])
    path.write_text('{"nothing": 1}\n')
    with pytest.raises(FormatError, match="no column"):
        check_held_out([], {"m": _corpus("a")}, given=[str(path)])


def test_what_a_name_says_does_nothing_to_the_terminal() -> None:
    heard = Heard()
    made = {"name": "\x1b[2Jmine\u202e" + "x" * 500, "rows": 3, "sha256": "0"}
    found = check_held_out([made], {"m": _corpus("a")}, progress=heard)
    assert found.missing[0].startswith("[2Jmine") and len(found.missing[0]) == 70
    assert not {"\x1b", "\u202e"} & set("".join(heard.words))


def test_a_column_of_a_parallel_corpus() -> None:
    thai = corpora.load("multilingual/harmful:th")
    with pytest.raises(RequestError, match="multilingual/harmful"):
        check_held_out([{"corpora": {"corpus": thai.describe()}}], {"m": thai.first(9)})


@pytest.mark.parametrize("odd", [
    None, [], {"name": 3, "rows": "x", "sha256": []}, {"corpora": "harmful"},
    {"name": "harmful/none", "rows": 3, "sha256": "0"},
    {"name": "a" * 9999, "rows": -5, "sha256": ""},
    {"name": "harmful", "rows": -1, "sha256": "", "language": ["en"]},
])  # fmt: skip
def test_hostile_metadata_names_nothing_that_hurts(odd: Any) -> None:
    deep: Any = odd
    for _ in range(200):
        deep = {"parents": [deep]}
    corpus = {"non_refusal": corpora.built_in("lookalike", "eval")}
    for made in (odd, deep):
        assert not check_held_out([{"x": made}], corpus).overlaps["non_refusal"].matches
