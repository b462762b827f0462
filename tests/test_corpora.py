"""Built-in corpora: sizes, fixed and disjoint splits; files and datasets, good and bad."""

from __future__ import annotations

import collections
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from snt import corpora
from snt.corpus_files import HubReference
from snt.errors import (
    FormatError,
    MissingFileError,
    RequestError,
    UnavailableError,
    UnknownNameError,
)

pytest_plugins = ["hub_fixtures"]

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
    wordings = collections.Counter(row["response"] for row in pairs.rows)
    assert len(wordings) >= 100 and wordings.most_common(1)[0][1] <= 0.03 * len(pairs.rows)


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
        ("p.CSV", "\ufeffprompt,x\none,1\ntwo,2\n"),
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
        ("p.json", "[" * 100_000, "no sound json"),
        ("p.parquet", "PAR1 and no more", "no sound parquet"),
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
    with pytest.raises(MissingFileError, match="directory"):
        corpora.load(str(tmp_path))
    with pytest.raises(UnknownNameError):
        corpora.built_in("harmful", "train")
    with pytest.raises(RequestError, match="it has tune"):
        corpora.load("refusals/eval")
    (tmp_path / "p.csv").write_text("goal,x\none,1\n")
    with pytest.raises(UnknownNameError, match="goal"):
        corpora.load(f"{tmp_path / 'p.csv'}:gaol")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _parquet(tmp_path / "p.parquet", [{"prompt": "one"}, {"prompt": "two"}])
    assert corpora.load(file).texts == ("one", "two")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    nested = _parquet(tmp_path / "m.parquet", [{"messages": turns}])
    assert corpora.load_pairs(nested).pairs == (("hi", "hello"),)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnavailableError, match="pip install pyarrow"):
        corpora.load(file)


def test_first() -> None:
    whole = corpora.load("harmful/eval")
    assert whole.first(3).texts == whole.texts[:3] and len(whole.first(3).rows) == 3
    assert whole.first(None) == whole
    assert corpora.load_pairs("refusals").first(2).describe()["rows"] == 2


@pytest.mark.parametrize(
    ("reference", "parts", "name"),
    [
        ("hf:a/b", ("a/b", None, None, None), "hf:a/b"),
        ("hf:a/b:main", ("a/b", "main", None, None), "hf:a/b:main"),
        ("hf:a/b:main:test:q", ("a/b", "main", "test", "q"), "hf:a/b:main:test:q"),
        ("hf:a/b::test", ("a/b", None, "test", None), "hf:a/b::test"),
        ("hf:a/b:train:q", ("a/b", None, "train", "q"), "hf:a/b::train:q"),
        ("hf:a/b:train[:9]", ("a/b", None, "train[:9]", None), "hf:a/b::train[:9]"),
        ("hf:./x/y:main", ("./x/y", "main", None, None), "hf:y:main"),
    ],
)
def test_hub_references(reference: str, parts: tuple[str | None, ...], name: str) -> None:
    found = HubReference.parse(reference)
    assert (found.id, found.config, found.split, found.column) == parts
    assert found.name == name


@pytest.mark.parametrize("reference", ["hf:", "hf:a b", "hf:a/b/c", "hf:../", "hf:a/b:1:2:3:4"])
def test_what_is_no_dataset(own_caches: Path, reference: str) -> None:
    assert own_caches.is_dir()
    with pytest.raises(RequestError, match="dataset"):
        corpora.load(reference)


def test_a_local_dataset_directory(
    own_caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = own_caches / "sums"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"question": split, "answer": "4"}))
    assert corpora.load("hf:./sums").texts == ("train",)
    pairs = corpora.load_pairs(f"hf:{folder}::test")
    assert (pairs.name, pairs.pairs) == ("hf:sums::test", (("test", "4"),))
    for reference, words in [
        ("hf:./sums:main", "Available: .*default"),
        ("hf:./sums::dev", "Unknown split"),
        ("hf:./none", "does not exist"),
        ("hf:./sums::test:goal", "answer, question"),
    ]:
        with pytest.raises(RequestError, match=words):
            corpora.load(reference)
    (folder / "train.jsonl").rename(folder / "validation.jsonl")
    with pytest.raises(RequestError, match="has the splits .*; name one"):
        corpora.load("hf:./sums")


def test_the_hub_is_left_alone_offline_and_where_it_does_not_answer(
    own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from huggingface_hub import HfApi, constants

    assert own_caches.is_dir()
    calls = []

    def load_dataset(path: str, **options: Any) -> Any:
        closed = datasets.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE
        calls.append((path, options["name"], options["split"], closed))
        return datasets.Dataset.from_list([{"prompt": "one"}])

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert corpora.load("hf:a/b:main:test").texts == ("one",)  # no Hub at this address
    assert corpora.load("hf:a/b", offline=True).describe()["name"] == "hf:a/b"
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    assert corpora.load("hf:a/b").texts == ("one",)
    assert calls == [
        ("hf://datasets/a/b", "main", "test", True),
        ("hf://datasets/a/b", None, None, True),
        ("hf://datasets/a/b", None, None, False),
    ]
    assert not datasets.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnavailableError, match="pip install datasets"):
        corpora.load("hf:a/b")


def test_a_dataset_that_cannot_be_had(own_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", own_caches / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RequestError, match="nobody/nothing.*may not be asked.*--offline"):
        corpora.load_pairs("hf:nobody/nothing")
