"""Commands on quantised weights, by the backend's name; masks and patches fit across backends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt
from conftest import write_pico
from snt_backends.quantised_model import QuantisedModel

from snt.backend import Batch, backend_names, get_backend, transformers_model
from snt.deltas import Deltas
from snt.errors import RequestError
from snt.masks import load_mask
from snt.opening import ModelChoice, open_model
from snt.patches import load_directory

NAMES = ("int8", "int4")
QUICK = ("--limit", "3", "--new-tokens", "4")
BATCH = Batch(torch.arange(1, 21).reshape(2, 10), torch.ones(2, 10, dtype=torch.bool))
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model and texts, and by each backend a mask and a patch made with it."""
    folder = tmp_path_factory.mktemp("quantised")
    write_pico(folder / "pico")
    (folder / "bad.txt").write_text("Do harm\nDo more harm\nBreak it\n")
    (folder / "good.txt").write_text("Make tea\nName a day\nAdd two\n")
    pairs = [{"prompt": f"Harm {n}", "response": "No."} for n in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        for name in ("full", *NAMES):
            texts = ("--corpus", "bad.txt", "--against", "good.txt", "--select", "budget=5%")
            found = _done(folder, "detect", "./pico", *texts, "-o", f"{name}.safetensors", on=name)
            assert found["parameter_share"] <= 0.05 and found["neurons"] > 0
        for name in NAMES:
            learn = (
                "--data",
                "pairs.jsonl",
                "--retain",
                "good.txt",
                "--epochs",
                "4",
                "--no-measure",
            )
            words = ("tune", "./pico", "--mask", f"{name}.safetensors", *learn, "--lr", "0.01")
            report = _done(folder, *words, "-o", name, on=name)
            assert report["outside_changed"] == 0 < report["changed"] <= report["masked"]
            assert report["loss"]["refuse"][-1] < report["loss"]["refuse"][0]
        yield folder


def _done(folder: Path, *words: str, on: str = "full") -> Any:
    done = snt(*words, "--backend", on, "--json", at=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_they_are_installed() -> None:
    assert set(NAMES) <= set(backend_names())
    assert [get_backend(name).name for name in NAMES] == list(NAMES)


@each
def test_masks_fit_every_backend(place: Path, name: str) -> None:
    mask = load_mask(place / f"{name}.safetensors")
    assert mask.provenance["backend"] == name
    assert (
        mask.provenance["fingerprint"]
        == load_mask(place / "full.safetensors").provenance["fingerprint"]
    )
    for backend in ("full", name):
        opened = open_model(ModelChoice(str(place / "pico"), backend))
        assert opened.check_mask(mask) is None


@each
def test_measured_with_the_patch_and_without_neurons(place: Path, name: str) -> None:
    words = ("eval", f"./{name}", "--base", "./pico", *QUICK, "-o", f"ev-{name}")
    metrics = _done(place, *words, on=name)["metrics"]
    assert metrics["non_refusal"]["n"] == 3 and metrics["perplexity"]["value"] > 1
    words = ("eval", "./pico", "--suite", "capability", "--limit", "3", "-o", f"de-{name}")
    whole = _done(place, *words, on=name)["metrics"]["perplexity"]["value"]
    words = (*words[:-1], f"off-{name}", "--deactivate", f"{name}.safetensors")
    without = _done(place, *words, on=name)["metrics"]["perplexity"]["value"]
    assert whole != without


@each
def test_a_patch_goes_back_to_the_checkpoint(place: Path, name: str) -> None:
    """The merged weights are the checkpoint's plus the delta, not the dequantised ones plus it."""
    merged = place / f"merged-{name}"
    report = _done_patch(place, "apply", name, "--model", "./pico", "-o", merged.name)
    assert report["outside_changed"] == 0 < report["changed"]
    patch = load_directory(place / name)
    plain: Any = get_backend("full").load(place / "pico", torch.float32)
    after: Any = get_backend("full").load(merged, torch.float32)
    for key, (at, delta) in patch.slices.items():
        before, now = (held.weight(key.layer, key.module) for held in (plain, after))
        axis = 0 if key.axis == "rows" else 1
        change = (now - before).index_select(axis, at.long())
        torch.testing.assert_close(change, delta, rtol=1e-4, atol=1e-6)
    with torch.inference_mode(), Deltas(patch.slices).attached(plain):
        torch.testing.assert_close(plain.hidden(BATCH), after.hidden(BATCH), rtol=1e-4, atol=1e-4)
    # And what was merged can be quantised in its turn.
    again: Any = get_backend(name).load(merged, torch.float32)
    assert bool(torch.isfinite(again.hidden(BATCH)).all())


def _done_patch(folder: Path, *words: str) -> Any:
    done = snt("patch", *words, "--json", at=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@each
def test_other_libraries_run_the_model(place: Path, name: str) -> None:
    held = get_backend(name).load(place / "pico", torch.float32)
    assert isinstance(held, QuantisedModel)
    assert transformers_model(held, name, "work") is held.model


def test_other_weights_are_told_apart(place: Path) -> None:
    write_pico(place / "other", seed=1)
    mask = load_mask(place / "int8.safetensors")
    warning = open_model(ModelChoice(str(place / "other"), "int8")).check_mask(mask)
    assert warning is not None and "other weights" in warning
    done = snt("eval", "./int8", "--base", "./other", "--backend", "int8", *QUICK, at=place)
    assert done.returncode == 2 and "fingerprint" in done.stderr


def test_a_quantised_checkpoint_is_refused_by_name(place: Path) -> None:
    shutil.copytree(place / "pico", place / "packed")
    config = json.loads((place / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (place / "packed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="packed is quantised already"):
        open_model(ModelChoice(str(place / "packed"), "int8"))
    done = snt("detect", "./packed", "--backend", "int4", "--corpus", "bad.txt", at=place)
    assert done.returncode == 2 and "quantised already" in done.stderr
