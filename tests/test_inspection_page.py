"""The HTML report: complete, self-contained, and deaf to what stands in the files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from test_commands import snt

from snt.anatomy import Anatomy
from snt.inspection import inspect_files
from snt.masks import NeuronMask, save_mask
from snt.report.inspection_page import inspection_page, save_page
from snt.report.page import LEVELS, doublings, tenths
from snt.scores import NeuronScores, Scores
from snt.scores_files import ScoresFile, save_scores
from snt.tensor_files import write_tensors

ANATOMY = Anatomy("llama", 3, d_model=8, d_ff=10, heads=4, kv_heads=2, head_dim=2)
VOID = {"meta", "link", "br", "img", "input"}


class Reader(HTMLParser):
    """Checks that elements nest, and gathers tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def _saved(path: Path, counts: dict[tuple[int, str], int], language: str | None = None,
           anatomy: Anatomy = ANATOMY, **provenance: Any) -> Path:  # fmt: skip
    neurons = {place: torch.arange(count, dtype=torch.int32) for place, count in counts.items()}
    if language is not None:
        provenance["corpora"] = {"corpus": {"name": "c", "language": language}}
    save_mask(NeuronMask(anatomy, neurons, provenance=provenance), path)
    return path


def _page(*paths: Path) -> tuple[str, Reader]:
    page = inspection_page(inspect_files(paths))
    return page, Reader(page)


def test_one_mask(tmp_path: Path) -> None:
    model = {"id": "a-model", "parameters": 1000}
    page, read = _page(_saved(tmp_path / "m", {(0, "ffn"): 3, (2, "k"): 4}, "th", model=model))
    words = " ".join(read.words.split())
    assert (
        "Model: a-model." in words and "7 neurons, 104 parameters (10.40% of the model's)" in words
    )
    assert "mask, language th" in words and "overlap" not in words.lower()
    assert "ffn 3 30 10.00% 42.9% 38.5% 1.11×" in words
    assert "late, layers 2" not in words and "late, layer 2 4 26 15.38% 57.1% 33.3% 1.71×" in words
    assert ("title", "k, layer 2: 4 of 4 (100.00%)") in read.attributes
    # A cell says its number, not a colour alone.
    assert '<td class="l6" title="k, layer 2: 4 of 4 (100.00%)">4</td>' in page


def test_nothing_outside_the_page_is_needed(tmp_path: Path) -> None:
    page, read = _page(_saved(tmp_path / "m", {(0, "q"): 1}))
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    targets = [value for name, value in read.attributes if name in ("href", "src")]
    assert targets and all(target.startswith("#") for target in targets)
    ids = {value for name, value in read.attributes if name == "id"}
    assert {target[1:] for target in targets} <= ids
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("count", [2, 5])
def test_several_masks(tmp_path: Path, count: int) -> None:
    names = ("en", "it", "zh", "th", "vi")[:count]
    paths = [_saved(tmp_path / f"{n}.x", {(0, "ffn"): i + 2}, n) for i, n in enumerate(names)]
    page, read = _page(*paths)
    words = " ".join(read.words.split())
    assert ("2 neurons in both masks" if count == 2 else "2 neurons in all 5 masks") in words
    assert ("at least 4 of 5 masks" in words) == (count == 5)
    assert words.count("in both ") >= count * (count - 1)
    # Two of ten and three of ten: 0.6 in both by chance, with a variance of 3 · 0.2 · 0.8 · 7/9.
    assert "0.667<small>2 in both</small><small>0.6 ± 0.6 by chance</small>" in page
    assert "<small>3.3× chance</small>" in page
    assert [words.count(f" {name} ") > 0 for name in names] == [True] * count


def test_scores_and_patches(tmp_path: Path) -> None:
    scores = Scores({(layer, "k"): NeuronScores.of(torch.rand(2, 4)) for layer in range(3)})
    save_scores(ScoresFile(ANATOMY, scores, {"model": {"id": "m"}}), tmp_path / "s")
    (tmp_path / "p").mkdir()
    write_tensors(tmp_path / "p" / "patch.safetensors", {"x": torch.zeros(1)},
                  {"format": "snt-patch", "version": 1})  # fmt: skip
    figures = {"before": {"non_refusal": 0.9}, "after": {"non_refusal": 0.1, "perplexity": 9.5}}
    (tmp_path / "p" / "report.json").write_text(json.dumps(figures))
    _saved(tmp_path / "p" / "mask.safetensors", {(0, "q"): 1})
    _, read = _page(tmp_path / "s", tmp_path / "p")
    words = " ".join(read.words.split())
    assert (
        "2 prompts, 12 neurons in 3 places" in words and "harmful, not refused 90.0% 10.0%" in words
    )
    assert "1 neurons, 8 parameters" in words and "does not say how it was made" in words
    (tmp_path / "p" / "report.json").unlink()
    (tmp_path / "p" / "mask.safetensors").unlink()
    _, read = _page(tmp_path / "p")
    assert "No report.json." in read.words and "No mask.safetensors." in read.words


HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror='a()'>\"\x1b[31m\u202e&amp;"


def test_what_stands_in_files_is_text_alone(tmp_path: Path) -> None:
    said = {HOSTILE: HOSTILE, "model": {"id": HOSTILE}, "parents": [{"selection": HOSTILE}]}
    paths = [
        _saved(tmp_path / f"<b>{n}'\".x", {(0, "q"): 1}, HOSTILE, **said) for n in ("one", "two")
    ]
    page, read = _page(*paths)
    assert not {"script", "img", "b"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "<script>" in read.words and "<b>one'\".x" in read.words
    assert "\x1b" not in page and "\u202e" not in page
    plain, plain_read = _page(_saved(tmp_path / "plain", {(0, "q"): 1}, "en"))
    assert set(read.tags) <= {*plain_read.tags, "small", "caption"} and "en" in plain


@pytest.mark.parametrize("language", ["x" * 36, "a b", "<i>", 3, None, ["en"]])
def test_what_is_no_language(tmp_path: Path, language: Any) -> None:
    corpora = {"corpus": {"name": "c", "language": language}}
    path = _saved(tmp_path / "m", {(0, "q"): 1}, corpora=corpora)
    found = inspect_files([path, path])
    assert found.comparison.names == ("m", "m (2)")
    for odd in ("corpora", ["corpora"], {"corpus": "c"}):
        save_mask(NeuronMask(ANATOMY, {}, provenance={"corpora": odd}), path)
        assert inspect_files([path]).files[0].as_json()["language"] is None


@pytest.mark.parametrize("layers", [1, 30, 33, 80, 700, 9999])
def test_every_layer_is_drawn_in_a_bounded_page(tmp_path: Path, layers: int) -> None:
    anatomy = Anatomy("llama", layers, 8, 10, 4, 2, 2)
    counts = {(layer, "ffn"): 1 for layer in range(layers)}
    page, _ = _page(_saved(tmp_path / "m", counts, anatomy=anatomy))
    drawn = [int(n.replace(",", "")) for n in re.findall(r'title="ffn, [^:]*: ([\d,]+) of', page)]
    assert sum(drawn) == layers and len(drawn) <= 256 and len(page) < 400_000


def test_levels() -> None:
    assert [doublings(v, 1.0) for v in (0, 1e-9, 0.2, 0.25, 0.5, 0.51, 1)] == [0, 1, 4, 4, 5, 6, 6]
    assert [tenths(v, 2.0) for v in (0, 0.1, 1.0, 2.0)] == [0, 1, 4, LEVELS]
    assert doublings(0.0, 0.0) == tenths(0.0, 0.0) == 0


def test_the_command(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m.safetensors", {(0, "q"): 1})
    done = snt("inspect", path.name, "--html", "report.html", "--json", at=tmp_path)
    assert done.returncode == 0 and "page: report.html" in done.stderr
    assert json.loads(done.stdout)["files"][0]["neurons"] == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == inspection_page(inspect_files([path]))
    done = snt("inspect", "none", "--html", "other.html", at=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "other.html").exists()
    (tmp_path / "folder").mkdir()
    assert save_page(inspect_files([path]), tmp_path / "folder" / "r.html").is_file()
