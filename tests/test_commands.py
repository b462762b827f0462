"""The commands end to end on a pico model, as a user types them, bad input included."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import snt
from conftest import write_pico
from transformers import AutoModelForCausalLM

RUN = "import sys; from snt.cli import main; main()"
QUICK = ["--limit", "4", "--new-tokens", "4"]


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two corpora and some pairs."""
    folder = tmp_path_factory.mktemp("work")
    write_pico(folder / "pico")
    (folder / "bad.txt").write_text("Do harm\nDo more harm\nBreak it\n")
    (folder / "good.txt").write_text("Make tea\nName a day\nAdd two\n")
    pairs = [{"prompt": f"Harm {n}", "response": "No."} for n in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


@pytest.fixture(scope="module")
def mask(place: Path) -> Path:
    """A mask detected on the two corpora."""
    done = snt(
        *("detect", "./pico", "--corpus", "bad.txt", "--against", "good.txt"),
        *("--select", "budget=5%", "-o", "m.safetensors", "--json"),
        at=place,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["prompts"] == 6 and report["parameter_share"] <= 0.05
    assert sum(report["counts"]["by_kind"].values()) == report["neurons"] > 0
    assert report["forward_seconds"] < report["seconds"] and report["peak_bytes"] > 0
    return place / "m.safetensors"


@pytest.fixture(scope="module")
def patch(place: Path, mask: Path) -> Path:
    """A patch tuned on the pairs."""
    done = snt(
        *("tune", "./pico", "--mask", mask.name, "--data", "pairs.jsonl", "--retain", "good.txt"),
        *("--epochs", "2", "--batch", "2", "-o", "patch", "--json", *QUICK),
        at=place,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == 6 and report["outside_changed"] == 0
    assert 0 < report["changed"] <= report["masked"] == report["trainable"]
    assert report["before"].keys() == report["after"].keys() >= {"non_refusal", "perplexity"}
    assert report == json.loads((place / "patch" / "report.json").read_text())
    return place / "patch"


def test_detect_writes_mask_and_scores_that_repeat(place: Path, mask: Path) -> None:
    from snt.masks import load_mask
    from snt.scores_files import load_scores

    held = load_mask(mask)
    for name in ("model", "fingerprint", "importance", "selection", "corpora", "template", "seed"):
        assert name in held.provenance
    assert held.provenance["corpora"]["against"]["rows"] == 3
    assert load_scores(place / "m.against.scores.safetensors").scores.places[0, "q"].prompts == 3
    again = ("--corpus", "bad.txt", "--against", "good.txt", "--select", "budget=5%")
    assert snt("detect", "./pico", *again, "-o", "n.safetensors", at=place).returncode == 0
    assert (place / "n.safetensors").read_bytes() == mask.read_bytes()
    assert str(place) not in mask.read_bytes().decode("latin-1")


@pytest.mark.parametrize("select", ["epsilon=0.001", "topk=ffn:3,attn:2"])
def test_other_selections(place: Path, select: str) -> None:
    common = ("--corpus", "bad.txt", "--select", select, "-o", "other.safetensors", "--json")
    done = snt("detect", "./pico", *common, "--against", "none", at=place)
    assert done.returncode == 0, done.stderr
    done = snt("detect", "./pico", *common, "--against", "good.txt", at=place)
    assert done.returncode == 2 and "budget" in done.stderr


def test_inspect_shows_masks_and_their_overlap(place: Path, mask: Path) -> None:
    done = snt("inspect", "m.safetensors", "m.safetensors", "m.scores.safetensors", at=place)
    assert done.returncode == 0, done.stderr
    assert "base rate" in done.stdout and "layer" in done.stdout
    assert json.loads(snt("inspect", "m.safetensors", "--json", at=place).stdout)


def test_the_model_is_the_one_that_the_mask_names(place: Path, mask: Path) -> None:
    done = snt("tune", "--mask", "m.safetensors", at=place)
    assert done.returncode == 2 and "'pico'" in done.stderr


def test_eval_takes_up_the_replies_of_the_tuning(place: Path, patch: Path) -> None:
    words = ("eval", "./patch", "--base", "./pico", "--baseline", "base", "-o", "ev", *QUICK)
    done = snt(*words, "--json", at=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["replies_reused"] == 12
    assert report["metrics"]["non_refusal"]["n"] == 4
    assert set(report["differences"]) >= {"non_refusal", "over_refusal", "perplexity"}
    tuned = json.loads((patch / "report.json").read_text())["after"]
    assert report["metrics"]["perplexity"]["value"] == pytest.approx(tuned["perplexity"], rel=1e-6)
    rows = [json.loads(line) for line in (place / "ev" / "completions.jsonl").open()]
    assert len(rows) == 12 and all(row["label"] and row["settings"] for row in rows)
    # Other settings were not used to make the saved replies, so they are made anew.
    words = ("eval", "./patch", "--base", "./pico", "--limit", "4", "--new-tokens", "5", "--json")
    assert json.loads(snt(*words, at=place).stdout)["replies_reused"] == 0


def test_rejudge_needs_no_model(place: Path, patch: Path) -> None:
    saved = patch / "completions" / "after.jsonl"
    words = ("eval", "--rejudge", str(saved), "--judge", "prefix", "-o", "again.jsonl", "--json")
    done = snt(*words, at=place)
    assert done.returncode == 0, done.stderr
    assert len((place / "again.jsonl").read_text().splitlines()) == 12


def test_a_deactivated_mask_changes_the_model_in_memory_only(place: Path, mask: Path) -> None:
    before = (place / "pico" / "model.safetensors").read_bytes()
    words = ("eval", "./pico", "--suite", "capability", "--limit", "4", "--json", "-o", "de")
    whole = json.loads(snt(*words, at=place).stdout)
    done = snt(*words, "--deactivate", mask.name, "--baseline", "base", at=place)
    part = json.loads(done.stdout)
    values = [r["metrics"]["perplexity"]["value"] for r in (whole, part)]
    assert values[0] != values[1]
    assert part["baseline"]["metrics"]["perplexity"]["value"] == pytest.approx(values[0])
    assert (place / "pico" / "model.safetensors").read_bytes() == before


def test_patch_apply_and_revert(place: Path, patch: Path) -> None:
    done = snt("patch", "apply", "patch", "--model", "./pico", "-o", "merged", at=place)
    assert done.returncode == 0, done.stderr
    AutoModelForCausalLM.from_pretrained(place / "merged")
    done = snt("patch", "revert", "merged", "-o", "back", "--json", at=place)
    assert done.returncode == 0, done.stderr
    before, after = (place / name / "model.safetensors" for name in ("pico", "back"))
    assert before.read_bytes() == after.read_bytes()
    assert (
        snt("patch", "apply", "patch", "--model", "./pico", "-o", "back", at=place).returncode == 2
    )


def test_nothing_changed_is_exit_3(place: Path, mask: Path) -> None:
    words = ("tune", "./pico", "--mask", mask.name, "--data", "pairs.jsonl", "--retain", "none")
    done = snt(*words, "--lr", "0", "--no-measure", "-o", "same", at=place)
    assert done.returncode == 3 and "changed none" in done.stderr
    assert not (place / "same").exists()


def test_a_failed_tuning_resumes_to_the_same_patch(
    place: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import snt.tuning as tuning
    from snt.errors import RunFailure

    def fail(*_: Any) -> None:
        raise RunFailure("the power went")

    words = ("tune", "./pico", "--mask", mask.name, "--data", "pairs.jsonl", "--retain", "good.txt")
    words += ("--epochs", "2", "--batch", "2", "--no-measure")
    assert snt(*words, "-o", "whole", at=place).returncode == 0
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "SAVE_STEPS", 4)
        patched.setattr(tuning, "prove", fail)
        done = snt(*words, "-o", "part", at=place)
        assert done.returncode == 1 and "the power went" in done.stderr
    assert not (place / "part").exists() and (place / "part.unfinished").is_dir()
    done = snt(*words, "-o", "part", "--resume", "--json", at=place)
    assert done.returncode == 0, done.stderr
    first, again = (place / name / "patch.safetensors" for name in ("whole", "part"))
    assert first.read_bytes() == again.read_bytes()
    assert not (place / "part.unfinished").exists()


def test_the_python_interface_names_every_command(place: Path, mask: Path) -> None:
    import snt as package

    for name in package.__all__:
        assert callable(getattr(package, name)), name
    assert package.inspect([mask]).as_json()
    with pytest.raises(AttributeError, match="nonsense"):
        package.nonsense  # noqa: B018


def _truncated(place: Path) -> str:
    whole = (place / "m.safetensors").read_bytes()
    (place / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return "cut.safetensors"


def _foreign(place: Path) -> str:
    write_pico(place / "wide", hidden_size=64)
    return "./wide"


def test_bad_input_is_exit_2_with_one_message(place: Path, mask: Path) -> None:
    (place / "empty.txt").write_text("")
    (place / "long.txt").write_text("x" * 1000)
    cases: list[tuple[Any, ...]] = [
        ("detect", "--nonsense"),
        ("detect", "./nowhere"),
        ("detect", "smolm2-135m"),
        ("detect", "./pico", "--corpus", "nowhere.jsonl"),
        ("detect", "./pico", "--corpus", "harmfull"),
        ("detect", "./pico", "--corpus", "empty.txt"),
        ("detect", "./pico", "--corpus", "long.txt", "--against", "none"),
        ("detect", "./pico", "--select", "budget=half"),
        ("detect", "./pico", "--importance", "exakt"),
        ("detect", "./pico", "--kinds", "q,x"),
        ("detect", "./pico", "--backend", "ful"),
        ("detect", "./pico", "--dtype", "float31"),
        ("tune", "./pico"),
        ("tune", "./pico", "--mask", "none.safetensors"),
        ("tune", "./pico", "--mask", _truncated(place)),
        ("tune", _foreign(place), "--mask", mask.name),
        ("tune", "./pico", "--mask", mask.name, "--resume"),
        ("eval", "./pico", "--suite", "safty"),
        ("eval", "./pico", "--judge", "oracle"),
        ("eval", "--rejudge", "none.jsonl"),
        ("inspect", "good.txt"),
        ("run", "quikstart"),
        ("run", "quickstart", "--set", "tune.epochs=lots"),
        ("patch", "apply", "pico", "-o", "x"),
        ("patch", "revert", "pico", "-o", "x"),
    ]
    names = set(place.iterdir())
    for words in cases:
        done = snt(*words, at=place)
        assert done.returncode == 2, (words, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr and not done.stdout.strip(), words
    assert set(place.iterdir()) == names


def test_a_file_in_the_way(place: Path, mask: Path) -> None:
    done = snt("detect", "./pico", "--corpus", "bad.txt", "-o", "good.txt/m.safetensors", at=place)
    assert done.returncode == 2 and "good.txt" in done.stderr


def test_ctrl_c_is_exit_130_and_leaves_no_half_result(place: Path) -> None:
    # Enough prompts that the work outlasts the wait below many times over.
    (place / "many.txt").write_text("".join(f"Break the thing number {n}\n" for n in range(6000)))
    words = ("detect", "./pico", "--corpus", "many.txt", "-o", "stopped.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        cwd=place,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    # The line that names the model is printed when it is loaded and the work begins.
    while "pico on" not in process.stderr.readline():
        pass
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in said
    assert {path.name for path in place.glob("*stopped*")} <= {"stopped.safetensors.unfinished"}


def test_a_recipe_runs_and_goes_on_from_a_step(place: Path) -> None:
    (place / "r.yaml").write_text(
        "name: tiny\nmodel: ./pico\n"
        "detect: {corpus: bad.txt, against: good.txt, select: budget=5%}\n"
        "tune: {data: pairs.jsonl, retain: [good.txt], epochs: 1, batch: 2}\n"
        "eval: {limit: 4, new_tokens: 4}\ninspect:\n"
    )
    plan = snt("run", "r.yaml", "--dry-run", "--set", "tune.epochs=2", "--json", at=place)
    assert [s["step"] for s in json.loads(plan.stdout)["steps"]] == [
        *("detect", "tune", "eval", "inspect")
    ]
    assert not (place / "runs").exists()
    done = snt("run", "r.yaml", "--json", at=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"]["eval"]["replies_reused"] == 12
    done = snt("run", "r.yaml", "--from", "eval", at=place)
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout and "runs/tiny" in done.stdout
    faults = snt("run", "r.yaml", "--set", "tune.lr=-1", "--set", "eval.limit=0", at=place)
    assert faults.returncode == 2 and "tune.lr" in faults.stderr and "eval.limit" in faults.stderr


def test_built_in_recipes_are_sound() -> None:
    from snt.recipes import built_in_recipes, load_recipe

    assert "quickstart" in built_in_recipes()
    for path in built_in_recipes().values():
        assert load_recipe(str(path)).steps
