"""`snt mask` and shards, as a user types them: the masks of a detection, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import snt
from conftest import write_pico

from snt.masks import load_mask
from snt.scores_files import load_scores

FILES = ("m.safetensors", "m.scores.safetensors", "m.against.scores.safetensors")
SCORES = ("from-scores", "m.scores.safetensors", "--against", "m.against.scores.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detection of two corpora of three batches each: `m.safetensors` and its scores."""
    folder = tmp_path_factory.mktemp("mask")
    write_pico(folder / "pico")
    (folder / "bad.txt").write_text("".join(f"Do harm {'x' * (5 * n % 23)}\n" for n in range(20)))
    (folder / "good.txt").write_text("".join(f"Make tea {'y' * n}\n" for n in range(17)))
    assert _detect(folder, "-o", "m.safetensors").returncode == 0
    return folder


def _detect(at: Path, *words: str) -> Any:
    corpora = ("--corpus", "bad.txt", "--against", "good.txt")
    return snt("detect", "./pico", *corpora, *words, "--offline", at=at)


def _mask(at: Path, *words: str) -> Any:
    done = snt("mask", *words, "--json", at=at)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_shards_merge_to_the_bytes_of_one_run(place: Path) -> None:
    for n in (1, 2, 3):
        done = _detect(place, "--shard", f"{n}/3", "-o", f"s{n}.safetensors", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["mask"] is None and report["shard"] == {"number": n, "of": 3}
        assert not (place / f"s{n}.safetensors").exists()
        assert 0 < report["prompts"] < 37
    shards = [f"s{n}.scores.safetensors" for n in (2, 3, 1)]
    against = [w for n in (1, 3, 2) for w in ("--against", f"s{n}.against.scores.safetensors")]
    (place / "merged").mkdir()
    report = _mask(place, "from-scores", *shards, *against, "-o", "merged/m.safetensors")
    assert report["scores"] == [f"merged/{name}" for name in FILES[1:]]
    for name in FILES:
        assert (place / "merged" / name).read_bytes() == (place / name).read_bytes()
    done = snt("mask", "from-scores", *shards[:2], "-o", "x.safetensors", at=place)
    assert done.returncode == 2 and "--shard 1/3" in done.stderr
    done = snt("mask", "from-scores", *shards, "-o", "s1.safetensors", at=place)
    assert done.returncode == 2 and "overwrite" in done.stderr
    assert not (place / "s1.safetensors").exists()


def test_a_shard_without_batches_or_sense(place: Path) -> None:
    for shard, words in (
        ("4/4", "at most 3"),
        ("0/3", "--shard"),
        ("4/3", "--shard"),
        ("x", "1/3"),
    ):
        done = _detect(place, "--shard", shard, "-o", "none.safetensors")
        assert done.returncode == 2 and words in done.stderr, done.stderr
    done = _detect(place, "--shard", "2/3", "-o", "said.safetensors")
    assert "no mask is cut" in done.stdout and "from-scores" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--select", "budget=2%", "--combine", "none", "--consistency", "0.9"),
        ("--select", "epsilon=0.01", "--combine", "none"),
        ("--select", "topk=ffn:24,attn:12", "--combine", "subtract"),
        ("--select", "topk=ffn:24", "--combine", "subtract", "--select-against", "budget=9%"),
        ("--select", "budget=5%", "--at-most", "ffn=3,layer=20", "--kinds", "q,ffn"),
    ],
)
def test_every_selection_is_cut_as_a_detection_cuts_it(place: Path, words: tuple[str, ...]) -> None:
    assert _detect(place, *words, "-o", "d.safetensors").returncode == 0
    report = _mask(place, *SCORES, *words, "-o", "c.safetensors")
    assert (place / "c.safetensors").read_bytes() == (place / "d.safetensors").read_bytes()
    held = load_mask(place / "c.safetensors")
    assert report["neurons"] == len(held) > 0 and report["scores"] == []
    told = held.provenance["selection"]
    assert told["source"].startswith(("this project's", "the paper's", "the released code's"))
    assert ("at_most" in told) == ("--at-most" in words)
    assert ("against_rule" in told) == ("subtract" in words)


def test_scores_say_all_that_a_selection_needs(place: Path) -> None:
    told = load_scores(place / FILES[2]).provenance
    assert told["model"]["parameters"] > 0 and told["model"]["id"] == "pico"
    for name in ("fingerprint", "template", "system_prompt", "importance", "dtype", "backend"):
        assert name in told
    assert told["corpora"]["against"]["rows"] == 17 and told["corpora"]["against"]["sha256"]
    assert told["prompts_dropped"] == 0 and told["snt"]


def test_files_that_do_not_belong_together(place: Path) -> None:
    assert _detect(place, "--system", "Be kind.", "-o", "k.safetensors").returncode == 0
    write_pico(place / "other", seed=1)
    words = ("detect", "./other", "--corpus", "bad.txt", "--against", "none")
    assert snt(*words, "-o", "o.safetensors", at=place).returncode == 0
    cases = [
        (("m.scores.safetensors", "m.against.scores.safetensors"), "after --against"),
        (("m.scores.safetensors", "--against", "k.against.scores.safetensors"), "system_prompt"),
        (("o.scores.safetensors", "--against", "m.against.scores.safetensors"), "other weights"),
        (("m.scores.safetensors", "--against", "m.scores.safetensors"), "both sides"),
        (("m.scores.safetensors", "m.scores.safetensors"), "twice"),
        (("m.scores.safetensors", "--combine", "contrast"), "--against"),
        (("m.scores.safetensors", "--kinds", "q,o"), "kind"),
        (("m.scores.safetensors", "--kinds", ""), "no kind"),
        (("m.safetensors",), "snt-scores"),
        (("none.safetensors",), "does not exist"),
        (("m.scores.safetensors", "--select", "budget=1"), "holds no neuron"),
    ]
    for words, said in cases:
        done = snt("mask", "from-scores", *words, "-o", "no.safetensors", at=place)
        assert done.returncode == 2 and said in done.stderr, (words, done.stderr)
        assert not (place / "no.safetensors").exists() and "Traceback" not in done.stderr
    done = snt("detect", "./pico", "--corpus", "bad.txt", "--against", "bad.txt", at=place)
    assert done.returncode == 2 and "both sides" in done.stderr


def test_the_foundation_alone_can_be_cut(place: Path) -> None:
    report = _mask(place, "from-scores", FILES[2], "-o", "foundation.safetensors")
    held = load_mask(place / "foundation.safetensors")
    assert report["neurons"] and held.provenance["corpora"]["corpus"]["name"] == "good.txt"
    assert held.provenance["combine"] == "none"


def test_a_selection_that_leaves_nothing_keeps_the_scores(place: Path) -> None:
    done = _detect(place, "--select", "budget=1", "-o", "e.safetensors")
    assert done.returncode == 2 and "from-scores" in done.stderr
    assert sorted(path.name for path in place.glob("e.*")) == [
        "e.against.scores.safetensors", "e.scores.safetensors",
    ]  # fmt: skip


def test_set_algebra_and_chance(place: Path) -> None:
    for name, select in (("a", "topk=ffn:30,q:9"), ("b", "topk=ffn:20,attn:12"), ("c", "topk=k:9")):
        words = ("from-scores", "m.scores.safetensors", "--select", select, "--combine", "none")
        _mask(place, *words, "-o", f"{name}.safetensors")
    inputs = [f"{name}.safetensors" for name in "abc"]
    a, b, c = (_flat(place / name) for name in inputs)
    for operation, expected in (
        ("union", a | b | c),
        ("intersect", a & b & c),
        ("subtract", a - b - c),
    ):
        report = _mask(place, operation, *inputs, "-o", f"{operation}.safetensors")
        assert _flat(place / f"{operation}.safetensors") == expected
        assert report["neurons"] == len(expected) and report["model"]["id"] == "pico"
        told = load_mask(place / f"{operation}.safetensors").provenance
        assert told["selection"]["rule"] == operation and len(told["parents"]) == 3
    for seed in ("7", "7", "8"):
        _mask(place, "random", inputs[1], "--seed", seed, "-o", f"r{seed}.safetensors")
    drawn = load_mask(place / "r7.safetensors")
    assert drawn.counts() == load_mask(place / inputs[1]).counts()
    assert _flat(place / "r7.safetensors") != _flat(place / "r8.safetensors")
    assert "neurons" in snt("mask", "union", *inputs, "-o", "u.safetensors", at=place).stdout


def test_masks_of_other_models(place: Path) -> None:
    write_pico(place / "wide", hidden_size=64)
    write_pico(place / "twin", seed=2)
    for name in ("wide", "twin"):
        words = ("--corpus", "bad.txt", "--against", "none", "-o", f"{name}.safetensors")
        assert snt("detect", f"./{name}", *words, at=place).returncode == 0
    words = ("mask", "union", "m.safetensors")
    done = snt(*words, "wide.safetensors", "-o", "no.safetensors", at=place)
    assert done.returncode == 2 and "different models" in done.stderr
    done = snt(*words, "twin.safetensors", "-o", "two.safetensors", at=place)
    assert done.returncode == 0 and "other weights" in done.stderr
    assert "model" not in load_mask(place / "two.safetensors").provenance
    done = snt(*words, "-o", "no.safetensors", at=place)
    assert done.returncode == 2 and "at least two" in done.stderr
    done = snt("mask", "random", "m.safetensors", "--seed", "-1", "-o", "no.safetensors", at=place)
    assert done.returncode == 2 and "seed" in done.stderr
    assert not (place / "no.safetensors").exists()


def _flat(path: Path) -> set[tuple[int, str, int]]:
    held = load_mask(path).neurons
    return {(layer, kind, i) for (layer, kind), at in held.items() for i in at.tolist()}
