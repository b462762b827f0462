"""Built-in corpora: sizes, fixed and disjoint splits; the user's files, good and bad."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from snt import corpora
from snt.errors import FormatError, MissingFileError, RequestError, UnknownNameError

WRITTEN = ("harmful", "refusals", "harmless", "lookalike", "prose")


def test_sizes() -> None:
    harmful = corpora.built_in("harmful")
    assert len(harmful.texts) >= 240
    assert len({row["category"] for row in harmful.rows}) == 10
    assert len(corpora.built_in("refusals").texts) >= 80
    assert len(corpora.built_in("harmless").texts) >= 400
    assert len(corpora.built_in("prose").texts) >= 60
    lookalike = corpora.built_in("lookalike")
    assert len(lookalike.texts) >= 120
    assert len({row["type"] for row in lookalike.rows}) == 10


@pytest.mark.parametrize("name", WRITTEN)
def test_prompts_are_distinct_and_clean(name: str) -> None:
    texts = corpora.built_in(name).texts
    assert len({text.casefold() for text in texts}) == len(texts)
    assert all(text == text.strip() and text.isascii() for text in texts)


@pytest.mark.parametrize("name", ["harmful", "harmless", "lookalike", "prose"])
def test_splits_are_fixed_disjoint_and_cover(name: str) -> None:
    whole = corpora.built_in(name)
    parts = [corpora.built_in(name, split).texts for split in corpora.SPLITS]
    assert all(parts)
    assert sum(map(len, parts)) == len(whole.texts)
    assert len(set().union(*parts)) == len(whole.texts)


def test_no_near_duplicates_across_splits() -> None:
    """Word sets of prompts in different splits overlap by less than 0.8 (Jaccard)."""
    for name in ("harmful", "harmless", "lookalike"):
        rows = corpora.built_in(name).rows
        words = [set(re.findall(r"[a-z']+", row["prompt"].lower())) for row in rows]
        for i, mine in enumerate(words):
            for j in range(i):
                if rows[i]["split"] != rows[j]["split"]:
                    overlap = len(mine & words[j]) / max(1, len(mine | words[j]))
                    assert overlap < 0.8, (rows[i]["prompt"], rows[j]["prompt"])


def test_refusals_belong_to_tuning_and_vary() -> None:
    pairs = corpora.built_in("refusals")
    assert set(pairs.texts) == set(corpora.built_in("harmful", "tune").texts)
    openings = collections.Counter(" ".join(r["response"].split()[:3]) for r in pairs.rows)
    assert openings.most_common(1)[0][1] / len(pairs.rows) <= 0.15
    assert len({row["response"] for row in pairs.rows}) == len(pairs.rows)


def test_digest_is_of_the_texts() -> None:
    assert corpora.load("harmful/eval").sha256 == corpora.built_in("harmful", "eval").sha256
    assert corpora.load("harmful").sha256 != corpora.load("harmless").sha256


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", '{"prompt": "one"}\n\n{"prompt": "two"}\n'),
        ("p.json", '[{"prompt": "one"}, {"prompt": "two"}]'),
        ("p.csv", "prompt,x\none,1\ntwo,2\n"),
        ("p.txt", "one\ntwo\n"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert corpora.load(str(tmp_path / name)).texts == ("one", "two")


def test_named_column(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("goal,x\none,1\n")
    assert corpora.load(f"{tmp_path / 'p.csv'}:goal").texts == ("one",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", '{"prompt": "one"}\n{oops\n', "line 2"),
        ("p.jsonl", "[1]\n", "not an object"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', "row 2"),
        ("p.json", "{}", "list of objects"),
        ("p.csv", "a,b\n1,2\n", "COLUMN"),
    ],
)
def test_malformed_files_name_the_row(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=words):
        corpora.load(str(tmp_path / name))


def test_requests_that_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(RequestError, match="empty"):
        corpora.load(str(tmp_path / "e.jsonl"))
    with pytest.raises(MissingFileError):
        corpora.load(str(tmp_path / "none.jsonl"))
    with pytest.raises(UnknownNameError, match="harmless"):
        corpora.load("harmles")
    with pytest.raises(UnknownNameError):
        corpora.built_in("harmful", "train")
