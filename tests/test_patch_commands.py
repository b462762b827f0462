"""`snt patch` as a user types it: stacks, scales, differences, precisions, adapters, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Done, snt
from conftest import write_pico
from small_patches import SMALL, small_patch, write_patch

from snt.anatomy import Anatomy
from snt.deltas import SliceKey
from snt.masks import NeuronMask, load_mask, save_mask
from snt.patches import Patch, load_directory

Q, DOWN = SliceKey(0, "self_attn.q_proj", "rows"), SliceKey(1, "mlp.down_proj", "cols")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model and patches: a, b apart from it, c sharing a row, d of other weights, e wider."""
    folder = tmp_path_factory.mktemp("work")
    pico = write_pico(folder / "pico")
    other, wide = write_pico(folder / "other", seed=9), write_pico(folder / "wide", hidden_size=64)
    for name, model, places in (
        ("a", pico, SMALL),
        ("b", pico, {Q: [1], DOWN: [7, 8]}),
        ("c", pico, {Q: [5, 6]}),
        ("d", other, {Q: [9]}),
        ("e", wide, {Q: [9]}),
    ):
        write_patch(small_patch(model, places, seed=ord(name)), folder / name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setenv("COLUMNS", "120")
        yield folder


def _report(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _refused(done: Done, *words: str, code: int = 2) -> None:
    assert done.returncode == code and "Traceback" not in done.stderr and not done.stdout
    assert all(word in done.stderr for word in words), done.stderr


def _equal(one: Patch, two: Patch) -> bool:
    return one.slices.keys() == two.slices.keys() and all(
        torch.equal(x, y)
        for key in one.slices
        for x, y in zip(one.slices[key], two.slices[key], strict=True)
    )


def test_stack_of_patches_that_do_not_meet(place: Path) -> None:
    report = _report(snt("patch", "stack", "a", "b", "-o", "ab", "--json", at=place))
    assert report["entries"] == report["changed"] == 96 + 96 and report["conflicts"] == {}
    assert report == json.loads((place / "ab" / "report.json").read_text())
    made = load_directory(place / "ab")
    assert made.slices[Q][0].tolist() == [0, 1, 5] and made.slices[DOWN][0].tolist() == [3, 7, 8]
    assert made.fingerprint == load_directory(place / "a").fingerprint
    assert made.provenance["model"] == {"id": "someone/pico", "revision": None}
    assert len(made.provenance["parents"]) == 2
    assert str(place) not in (place / "ab" / "patch.safetensors").read_bytes().decode("latin-1")
    typed = (place / "ab" / "command.txt").read_text()
    assert typed == "snt patch stack a b -o ab --json\n"
    assert "Not measured" in (place / "ab" / "README.md").read_text()
    # Merging the stack is merging both: the entries are apart.
    assert snt("patch", "apply", "ab", "--model", "./pico", "-o", "m", at=place).returncode == 0
    assert snt("inspect", "ab", at=place).returncode == 0
    done = snt("patch", "stack", "b", "a", "-o", "ba", at=place)
    assert done.returncode == 0 and _equal(made, load_directory(place / "ba"))


def test_no_path_of_this_machine_is_in_what_was_made(place: Path) -> None:
    words = ("patch", "stack", str(place / "a"), f"../{place.name}/b", "-o", str(place / "shared"))
    assert snt(*words, at=place).returncode == 0
    for file in (place / "shared").iterdir():
        assert place.name.encode() not in file.read_bytes(), file
    assert (place / "shared" / "command.txt").read_text() == "snt patch stack a b -o shared\n"


def test_conflicts_are_named_and_chosen(place: Path) -> None:
    done = snt("patch", "stack", "a", "c", "b", "-o", "no", at=place)
    _refused(done, "a and c: layers.0.self_attn.q_proj: 1 rows (5)", "sum", "first", "last")
    assert not (place / "no").exists()
    a, c = (load_directory(place / name).slices[Q][1] for name in "ac")
    for rule, wanted in (("sum", a[1] + c[0]), ("first", a[1]), ("last", c[0])):
        words = ("patch", "stack", "a", "c", "--conflicts", rule, "-o", rule, "--json")
        report = _report(snt(*words, at=place))
        (found,) = report["conflicts"]["a and c"]
        assert found["what"] == "rows" and found["count"] == 1 and found["first"] == [5]
        at, delta = load_directory(place / rule).slices[Q]
        assert at.tolist() == [0, 5, 6] and torch.equal(delta[1], wanted)


def test_masks_of_stacked_patches_are_united(place: Path) -> None:
    for name, at in (("a", [3]), ("b", [7, 8])):
        anatomy = load_directory(place / name).anatomy
        write_patch(load_directory(place / name), place / f"{name}m")
        neurons = {(1, "ffn"): torch.tensor(at, dtype=torch.int32)}
        save_mask(NeuronMask(anatomy, neurons), place / f"{name}m" / "mask.safetensors")
    report = _report(snt("patch", "stack", "am", "bm", "-o", "abm", "--json", at=place))
    assert report["mask"] is True
    mask = load_mask(place / "abm" / "mask.safetensors")
    assert mask.neurons[1, "ffn"].tolist() == [3, 7, 8]
    odd = NeuronMask(Anatomy("llama", 2, 64, 48, 4, 2, 16), {})
    save_mask(odd, place / "bm" / "mask.safetensors")
    _refused(snt("patch", "stack", "am", "bm", "-o", "x", at=place), "another model")


def test_scale(place: Path) -> None:
    report = _report(snt("patch", "scale", "a", "--scale", "0.5", "-o", "half", "--json", at=place))
    assert report["how"]["scale"] == 0.5 and report["mask"] is False
    whole, half = load_directory(place / "a"), load_directory(place / "half")
    assert all(torch.equal(half.slices[key][1], whole.slices[key][1] / 2) for key in whole.slices)
    words = ("patch", "apply", "--model", "./pico", "-q")
    assert snt(*words, "a", "--scale", "0.5", "-o", "m1", at=place).returncode == 0
    assert snt(*words, "half", "-o", "m2", at=place).returncode == 0
    one, two = (place / name / "model.safetensors" for name in ("m1", "m2"))
    assert one.read_bytes() == two.read_bytes()
    assert snt("patch", "revert", "m1", "-o", "back", at=place).returncode == 0
    back = (place / "back" / "model.safetensors").read_bytes()
    assert back == (place / "pico" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("scale", ["-1", "-0.001", "2.5", "nan", "inf"])
def test_no_scale_reverses_a_patch(place: Path, scale: str) -> None:
    names = set(place.iterdir())
    done = snt("patch", "scale", "a", f"--scale={scale}", "-o", "no", at=place)
    _refused(done, "takes safety out", "0 to 2")
    words = ("patch", "apply", "a", "--model", "./pico", f"--scale={scale}", "-o", "no")
    _refused(snt(*words, at=place), "takes safety out")
    assert set(place.iterdir()) == names


def test_diff(place: Path) -> None:
    report = _report(snt("patch", "diff", "a", "c", "--json", at=place))
    part = report["modules"]["self_attn.q_proj"]
    assert (part["only_first"], part["both"], part["only_second"]) == (32, 32, 32)
    assert -1 <= part["cosine"] <= 1 and report["same_base"] is True
    assert report["modules"]["mlp.down_proj"]["cosine"] is None
    assert report["modules"]["all"]["only_first"] == 64
    done = snt("patch", "diff", "a", "d", at=place)
    assert done.returncode == 0 and "different weights" in done.stdout and "all" in done.stdout
    same = _report(snt("patch", "diff", "a", "a", "--json", at=place))["modules"]["all"]
    assert same["norm_difference"] == 0 and same["cosine"] == pytest.approx(1)
    _refused(snt("patch", "diff", "a", "e", at=place), "another shape")


def test_apply_says_what_rounding_keeps(place: Path) -> None:
    words = ("patch", "apply", "a", "--model", "./pico", "--dtype", "bf16", "-o", "bf")
    report = _report(snt(*words, "--json", at=place))
    assert report["dtype"] == "bfloat16" and report["base_dtype"] == "float32"
    assert 0.9 < report["kept_share"] <= 1 and 0 < report["relative_error"] < 0.01
    assert report["outside_changed"] == 0 and report["entries"] == 96
    config = json.loads((place / "bf" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    kept = json.loads((place / "bf" / "snt" / "report.json").read_text())
    assert kept["kept"]["relative_error"] == report["relative_error"]
    done = snt("patch", "apply", "a", "--model", "./pico", "-o", "same", at=place)
    assert "float32 keeps 96 of 96 changed entries (100.00%)" in done.stdout, done.stdout


def test_nothing_that_survives_is_exit_3(place: Path) -> None:
    tiny = load_directory(place / "a")
    slices = {key: (at, delta * 1e-12) for key, (at, delta) in tiny.slices.items()}
    write_patch(Patch(tiny.anatomy, slices, tiny.fingerprint, tiny.provenance), place / "tiny")
    for words in (("tiny", "--dtype", "bf16"), ("a", "--scale", "0")):
        done = snt("patch", "apply", *words, "--model", "./pico", "-o", "none", at=place)
        _refused(done, "nothing was written", code=3)
        assert not (place / "none").exists()


def test_export(place: Path) -> None:
    words = ("patch", "export", "a", "--format", "peft", "-o", "lora")
    report = _report(snt(*words, "--json", at=place))
    assert report["rank"] == 2 and report["modules"] == 2 and report["warning"] is None
    assert report["bytes"] == (place / "lora" / "adapter_model.safetensors").stat().st_size
    done = snt("patch", "export", "a", "--uniform-rank", "-o", "lora8", at=place)
    assert done.returncode == 0 and "someone/pico" in done.stdout
    config = json.loads((place / "lora8" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and config["rank_pattern"] == {}


def test_bad_input_is_exit_2_and_writes_nothing(place: Path) -> None:
    cut = (place / "a" / "patch.safetensors").read_bytes()[:200]
    (place / "cut").mkdir()
    (place / "cut" / "patch.safetensors").write_bytes(cut)
    cases: list[tuple[str, ...]] = [
        ("stack", "a", "-o", "x"),
        ("stack", "a", "d", "-o", "x"),
        ("stack", "a", "e", "-o", "x"),
        ("stack", "a", "pico", "-o", "x"),
        ("stack", "a", "cut", "-o", "x"),
        ("stack", "a", "b", "--conflicts", "frist", "-o", "x"),
        ("stack", "a", "b", "-o", "pico"),
        ("stack", "a", "b"),
        ("scale", "a", "--scale", "half", "-o", "x"),
        ("scale", "a", "-o", "x"),
        ("scale", "cut", "--scale", "1", "-o", "x"),
        ("scale", "a", "--scale", "1", "-o", "pico"),
        ("diff", "a"),
        ("diff", "a", "cut"),
        ("diff", "a", "nowhere"),
        ("export", "nowhere", "-o", "x"),
        ("export", "cut", "-o", "x"),
        ("export", "a", "--format", "pefd", "-o", "x"),
        ("export", "a", "--base", "/models/mine", "-o", "x"),
        ("export", "a", "-o", "pico"),
        ("apply", "a", "--model", "./pico", "--dtype", "bf17", "-o", "x"),
        ("apply", "a", "--model", "./wide", "-o", "x"),
        ("apply", "a", "--model", "./other", "-o", "x"),
        ("apply", "cut", "--model", "./pico", "-o", "x"),
        ("apply", "a", "--model", "./pico", "-o", "pico"),
    ]
    names = set(place.iterdir())
    for words in cases:
        done = snt("patch", *words, at=place)
        assert done.returncode == 2, (words, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr and not done.stdout.strip(), words
    assert set(place.iterdir()) == names
