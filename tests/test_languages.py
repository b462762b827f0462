"""Masks by language: the parallel corpus, what may be asked for, and one command end to end."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_commands import snt as run

from snt import corpora, languages
from snt.corpora import LANGUAGES
from snt.errors import RequestError, UnknownNameError
from snt.inspection import inspect_files
from snt.languages import detect_languages, language_path, languages_asked
from snt.masks import load_mask
from snt.opening import open_model

KINDS = ("harmful", "harmless")
# What every text of a language holds, and what none does.
SCRIPTS = {
    "en": (r"[a-z]", r"[^\x00-\x7f]"),
    "it": (r"[a-z]", r"[^\x00-\x7fàèéìòùÈ]"),
    "zh": (r"[\u4e00-\u9fff]", r"[a-zA-Z\u0e00-\u0e7f]"),
    "th": (r"[\u0e00-\u0e7f]", r"[a-zA-Z\u4e00-\u9fff]"),
    "vi": (r"[a-z]", r"[\u0e00-\u0e7f\u4e00-\u9fff]"),
}


def _rows() -> tuple[Any, ...]:
    return corpora.built_in("multilingual").rows


def test_the_parallel_corpus_is_whole() -> None:
    rows = _rows()
    assert all(set(row) == {*LANGUAGES, "kind", "category"} for row in rows)
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        assert len(mine) == 50
        assert set(Counter(row["category"] for row in mine).values()) == {5}
        english = corpora.built_in(kind).rows
        assert {row["category"] for row in mine} == {row["category"] for row in english}
    assert {row["kind"] for row in rows} == set(KINDS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_distinct_clean_and_in_their_script(language: str) -> None:
    texts = [row[language] for row in _rows()]
    assert len({text.casefold() for text in texts}) == len(texts)
    must, must_not = SCRIPTS[language]
    for text in texts:
        assert text == text.strip() and text.isprintable() and re.search(must, text)
        assert not re.search(must_not, text), text
    if language == "vi":
        assert all(not text.isascii() for text in texts)
    for other in LANGUAGES:
        assert other == language or not {row[other] for row in _rows()} & set(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_harmful_and_harmless_are_of_like_length(language: str) -> None:
    harmful, harmless = (
        [len(row[language].encode()) for row in _rows() if row["kind"] == kind] for kind in KINDS
    )
    assert sum(harmful) / sum(harmless) == pytest.approx(1, abs=0.1)


def test_far_from_what_is_tuned_and_evaluated_on() -> None:
    """Word sets of English texts and of other splits overlap by less than 0.6 (Jaccard)."""
    mine = [set(re.findall(r"[a-z']+", row["en"].lower())) for row in _rows()]
    for name in ("harmful", "harmless", "lookalike"):
        for split in ("tune", "eval"):
            for text in corpora.built_in(name, split).texts:
                theirs = set(re.findall(r"[a-z']+", text.lower()))
                assert all(len(m & theirs) / len(m | theirs) < 0.6 for m in mine), text


def test_references() -> None:
    thai = corpora.load("multilingual/harmful:th")
    assert (thai.name, thai.language, len(thai.texts)) == ("multilingual/harmful", "th", 50)
    assert thai.describe()["language"] == "th"
    assert corpora.load("multilingual/harmless", language="it").language == "it"
    assert corpora.load("multilingual/harmful").language == "en"
    assert corpora.load(thai) is thai
    for wrong, words in [
        ("multilingual/tune", "part 'tune'; known: harmful, harmless"),
        ("multilingual/harmful:xx", "They are those of multilingual"),
        ("harmful:category", "column 'category'"),
    ]:
        with pytest.raises(UnknownNameError, match=words):
            corpora.load(wrong)
    with pytest.raises(RequestError, match="take no column"):
        corpora.load_pairs("refusals/tune:prompt")


def test_two_languages_are_not_compared() -> None:
    first, second = corpora.load("multilingual/harmful:th"), corpora.load("harmless/detect")
    with pytest.raises(RequestError, match="multilingual/harmless:th"):
        corpora.check_same_language(first, second)
    corpora.check_same_language(first, corpora.load("multilingual/harmless:th"))


def test_languages_asked(tmp_path: Path) -> None:
    assert languages_asked(None, None) == ((), None)
    assert languages_asked(None, "f.csv:goal") == ((), "f.csv:goal")
    assert languages_asked("en, th", None) == (("en", "th"), None)
    assert languages_asked("th", "f.csv") == (("th",), "f.csv")
    assert languages_asked(None, "f.csv:en,th") == (("en", "th"), "f.csv")
    odd = tmp_path / "a:b,c.txt"
    odd.write_text("one")
    assert languages_asked(None, str(odd)) == ((), str(odd))
    for option, corpus, words in [
        ("en,en", None, "twice"),
        ("en,", None, "''"),
        ("../x", None, "not a column's name"),
        ("en", "f.csv:en,it", "give one"),
    ]:
        with pytest.raises(RequestError, match=words):
            languages_asked(option, corpus)
    with pytest.raises(RequestError, match="no language"):
        detect_languages([])
    assert language_path(Path("x/m.safetensors"), "zh") == Path("x/m.zh.safetensors")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parallel corpora of two rows."""
    monkeypatch.setenv("COLUMNS", "100")
    bad = [{"en": "Do harm", "it": "Fai del male", "th": "ทำร้าย"}]
    good = [{"en": "Make tea", "it": "Fai il tè", "th": "ชงชา"}]
    for name, rows in (("bad", bad), ("good", good)):
        rows = [*rows, {key: f"{value} 2" for key, value in rows[0].items()}]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_one_command_gives_a_mask_for_each_language(
    place: Path, pico: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    monkeypatch.setattr(
        languages, "open_model", lambda *a, **k: opened.append(a) or open_model(*a, **k)
    )
    words = ("--corpus", "bad.jsonl:en,it,th", "--against", "good.jsonl", "--select", "budget=5%")
    done = run("detect", str(pico), *words, "-o", "m.safetensors", "--json", at=place)
    assert done.returncode == 0, done.stderr
    assert len(opened) == 1
    report = json.loads(done.stdout)
    assert list(report["languages"]) == ["en", "it", "th"]
    assert len(report["overlaps"]) == 3 and report["shared"][0]["of"] == 3
    paths = [place / f"m.{name}.safetensors" for name in ("en", "it", "th")]
    for name, path in zip(("en", "it", "th"), paths, strict=True):
        described = load_mask(path).provenance["corpora"]
        assert described["corpus"]["language"] == described["against"]["language"] == name
        assert path.with_name(f"m.{name}.against.scores.safetensors").is_file()
    found = inspect_files(paths)
    assert found.comparison.names == ("en", "it", "th")
    assert found.as_json()["overlaps"] == report["overlaps"]
    # The same as one language by itself.
    alone = ("--corpus", "bad.jsonl:it", "--against", "good.jsonl:it", "--select", "budget=5%")
    assert run("detect", str(pico), *alone, "-o", "one.safetensors", at=place).returncode == 0
    one, it = load_mask(place / "one.safetensors"), load_mask(paths[1])
    assert one.overlap(it) == 1.0 and "language" not in one.provenance["corpora"]["corpus"]
    # Files without a language of their own go by their names.
    named = inspect_files([*paths[:1], place / "one.safetensors"]).comparison.names
    assert named == ("m.en.safetensors", "one.safetensors")
    again = inspect_files([paths[0], paths[0]]).comparison.names
    assert again == ("m.en.safetensors", "m.en.safetensors (2)")


def test_the_table_and_the_built_in_corpus(place: Path, pico: Path) -> None:
    few = {kind: corpora.load(f"multilingual/{kind}:it").first(2) for kind in KINDS}
    assert all(corpus.language == "it" for corpus in few.values())
    words = ("--languages", "en,it", "--corpus", "bad.jsonl", "--against", "good.jsonl")
    done = run("detect", str(pico), *words, "--select", "budget=5%", at=place)
    assert done.returncode == 0, done.stderr
    assert "overlap of the masks" in done.stdout and "in both masks" in done.stdout
    assert (place / "mask.en.safetensors").is_file()
    assert "language 2 of 2: it" in done.stderr


def test_what_cannot_be_served_is_said_before_the_model_is_loaded(place: Path) -> None:
    (place / "gap.jsonl").write_text('{"en": "a", "it": "b"}\n{"en": "c", "it": " "}\n')
    for words, said in [
        (("--languages", "en,vi", "--corpus", "bad.jsonl"), "'vi'"),
        (("--languages", "en,xx"), "'xx'"),
        (("--corpus", "gap.jsonl:en,it"), "row 2"),
        (("--corpus", "bad.jsonl:en,it,th", "--against", "gap.jsonl"), "row 2"),
        (("--corpus", "multilingual/harmful:th"), "multilingual/harmless:th"),
        (("--languages", "en", "--corpus", "bad.jsonl:it"), "leave the column out"),
    ]:
        done = run("detect", "./no-such-model", *words, at=place)
        assert done.returncode == 2 and said in done.stderr.replace("\n", " "), done.stderr


def test_lengths_that_differ_are_said(place: Path, pico: Path) -> None:
    (place / "long.jsonl").write_text(json.dumps({"en": "Make tea for all of us, please"}))
    words = ("--languages", "en", "--corpus", "bad.jsonl", "--against", "long.jsonl")
    done = run("detect", str(pico), *words, "--select", "budget=5%", at=place)
    assert done.returncode == 0 and "tell their lengths apart" in " ".join(done.stderr.split())
