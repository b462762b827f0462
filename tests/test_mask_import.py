"""Neuron files of the published code: what they name, and everything they may get wrong."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt
from conftest import write_pico

from snt.anatomy import Anatomy
from snt.errors import FormatError, SntError, UnknownNameError
from snt.masks import load_mask
from snt.published_masks import PublishedNeurons, published_mask, read_published

# Query heads 0 to 2 share the first key head, 3 to 5 the second.
ANATOMY = Anatomy("llama", layers=3, d_model=24, d_ff=40, heads=6, kv_heads=2, head_dim=4)


def _file(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _neurons(at: Path, *lines: Any) -> PublishedNeurons:
    return read_published(_file(at / "n.txt", *lines))


def test_what_the_published_code_writes(tmp_path: Path) -> None:
    up = {0: {39, 3}, 1: set(), 2: {0}}
    found = _neurons(tmp_path, up, up, {0: {23}, 1: set()}, {1: {5, 23}}, {2: {0, 1, 2, 3}})
    mask = published_mask(found, ANATOMY)
    assert {place: list(rows) for place, rows in mask.neurons.items()} == {
        (0, "ffn"): [3, 39],
        (2, "ffn"): [0],
        (0, "q"): [23],
        (1, "k"): [1, 7],
        (2, "v"): [0, 1],
    }
    assert found.only_down == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda sets: str({n: [f"neuron_{i}" for i in s] for n, s in sets.items()}),
        lambda sets: str({n: {f"neuron_{i}" for i in s} for n, s in sets.items()}),
        lambda sets: json.dumps({str(n): list(s) for n, s in sets.items()}),
        lambda sets: str({n: tuple(s) * 2 for n, s in sets.items()}) + "\n",
    ],
    ids=["names", "sets of names", "json", "tuples, twice, blank lines"],
)
def test_what_re_implementations_write(write: Any, tmp_path: Path) -> None:
    lines = [{0: {7, 8, 9}, 2: {1}}, {0: {7}}, {1: {2}}, {0: {4}}, {2: set()}]
    assert _neurons(tmp_path, *map(write, lines)).lines == _neurons(tmp_path, *lines).lines


def test_axes_of_keys_and_values(tmp_path: Path) -> None:
    # What transformers' repeat_kv makes of the rows of a key projection.
    rows = torch.arange(8).view(2, 4).repeat_interleave(3, dim=0).flatten()
    for index in range(24):
        found = _neurons(tmp_path, {}, {}, {}, {0: {index}}, {1: {index}})
        wanted = {"measured": int(rows[index]), "tuned": index // 3}
        for axis, row in wanted.items():
            mask = published_mask(found, ANATOMY, axis)
            assert [int(mask.neurons[p]) for p in ((0, "k"), (1, "v"))] == [row, row]
        if index < 8:
            assert int(published_mask(found, ANATOMY, "rows").neurons[0, "k"]) == index
        else:
            with pytest.raises(FormatError, match="beyond the 8 there are; --kv-axis"):
                published_mask(found, ANATOMY, "rows")
    with pytest.raises(UnknownNameError, match="measured"):
        published_mask(found, ANATOMY, "mesured")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{}"] * 4, "4 lines that are not empty"),
        (["{}"] * 6, "6 lines that are not empty"),
        (
            ["__import__('os').system('touch hacked')", *["{}"] * 4],
            "line 1 (up_proj): it is no dictionary",
        ),
        (["{0: {1}", *["{}"] * 4], "'0: {1' is no layer with a set"),
        ([*["{}"] * 4, "[1, 2]"], "line 5 (v_proj): it is no dictionary"),
        (["[" * 5000, *["{}"] * 4], "line 1 (up_proj): it is no dictionary"),
        (["{}", "{'one': {1}}", *["{}"] * 3], "is no layer with a set or list"),
        (["{0: {1}, '0': {2}}", *["{}"] * 4], "layer 0 stands there twice"),
        (["{0: 7}", *["{}"] * 4], "'0: 7' is no layer with a set or list"),
        (["{0: {-1}}", *["{}"] * 4], "index '-1' is no whole number"),
        (["{0: {1.0}}", *["{}"] * 4], "index '1.0' is no whole number"),
        (["{0: {True}}", *["{}"] * 4], "index 'True' is no whole number"),
        (["{0: {'neuron_'}}", *["{}"] * 4], "is no whole number"),
        (["{0: {99999999999999999999}}", *["{}"] * 4], "is no whole number"),
        (["{0: {0x1f}}", *["{}"] * 4], "index '0x1f' is no whole number"),
        (["{0: {1,, 2}}", *["{}"] * 4], "index '' is no whole number"),
        (["{0: {1} 1: {2}}", *["{}"] * 4], "'1: {2}' is no layer"),
        (["{}", "{3: {1}}", *["{}"] * 3], "down_proj: layer 3 is beyond"),
        (["{}", "{0: {40}}", *["{}"] * 3], "down_proj: index 40 of layer 0 is beyond the 40"),
        (["{3: {1}}", *["{}"] * 4], "layer 3 is beyond the model's 3"),
        (["{0: {40}}", *["{}"] * 4], "index 40 of layer 0 is beyond the 40"),
        (["{}"] * 5, "names no neuron"),
    ],
)
def test_bad_files(lines: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(SntError, match=re.escape(said)) as error:
        published_mask(_neurons(tmp_path, *lines), ANATOMY)
    assert error.value.exit_code == 2 and not (tmp_path / "hacked").exists()
    assert len(str(error.value)) < 400


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_bytes(b"\xff\x00\n" * 5)
    with pytest.raises(FormatError, match="it is no text"):
        read_published(tmp_path / "n.txt")
    with pytest.raises(SntError, match="no file"):
        read_published(tmp_path / "none.txt")


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    line = f"{{0: [{', '.join(['7'] * 400_000)}]}}"
    tracemalloc.start()
    found = _neurons(tmp_path, line, *["{}"] * 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.lines["up_proj"] == {0: (7,)}
    assert peak < 60 * len(line)


def test_the_command(tmp_path: Path) -> None:
    write_pico(tmp_path / "pico")
    _file(tmp_path / "n.txt", {0: {3, 5}}, {0: {3, 4}}, {1: {2}}, {0: {0, 1}}, {})
    words = ("mask", "import", "n.txt", "--model", "./pico", "--offline", "-o", "m.safetensors")
    done = snt(*words, "--json", at=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["warning"].startswith("down_proj names 1 that") and report["neurons"] > 3
    assert "import again with --kv-axis rows" in report["warning"]
    assert 0.0 < report["parameter_share"] < 1.0
    mask = load_mask(tmp_path / "m.safetensors")
    assert mask.provenance["selection"]["kv_axis"] == "tuned"
    assert mask.provenance["model"]["id"] == "pico"
    assert str(tmp_path) not in json.dumps(mask.provenance)
    # It is a mask like any other: it can be tuned, and found again on its own model.
    done = snt("mask", "random", "m.safetensors", "-o", "r.safetensors", at=tmp_path)
    assert done.returncode == 0, done.stderr
    done = snt("inspect", "m.safetensors", "r.safetensors", at=tmp_path)
    assert done.returncode == 0, done.stderr
    for bad in (("--kv-axis", "sideways"), ("--model", "./none"), ("-o", "n.txt"), ("-o", ".")):
        done = snt(*words, *bad, at=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
