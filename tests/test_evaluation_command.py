"""`snt eval` as a user types it: several models, seeds, gates, held-out prompts, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import snt
from conftest import write_pico

QUICK = ["--limit", "4", "--new-tokens", "4"]
FAST = ["--suite", "over-refusal,capability", *QUICK]


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a mask from files, and a patch for each of two seeds."""
    folder = tmp_path_factory.mktemp("work")
    write_pico(folder / "pico")
    (folder / "bad.txt").write_text("Do harm\nDo more harm\nBreak it\n")
    (folder / "good.txt").write_text("Make tea\nName a day\nAdd two\n")
    pairs = [{"prompt": f"Harm number {n}", "response": "No."} for n in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = snt(*("detect", "./pico", "--corpus", "bad.txt", "--against", "good.txt"),
               *("--select", "budget=5%", "-o", "m.safetensors"), at=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seed in ("0", "1"):
        words = ("--mask", "m.safetensors", "--data", "pairs.jsonl", "--retain", "good.txt")
        words += ("--epochs", "1", "--batch", "2", "--no-measure", "--seed", seed)
        done = snt("tune", "./pico", *words, "-o", f"patch{seed}", at=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_several_models_beside_the_baseline(place: Path) -> None:
    words = ("eval", "./patch0", "--base", "./pico", "--baseline", "base", "-o", "several", *FAST)
    words += ("--compare", "./patch1", "--compare", "plain=./pico", "--html", "page.html")
    done = snt(*words, "--json", at=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["name"] == "patch0"
    assert [one["name"] for one in report["compared"]] == ["patch1", "plain"]
    plain = report["compared"][1]
    assert all(d.get("difference", d.get("relative")) == 0 for d in plain["differences"].values())
    (group,) = report["seeds"]
    assert group["seeds"] == {"patch0": 0, "patch1": 1}
    spread = group["metrics"]["perplexity"]
    values = [m["metrics"]["perplexity"]["value"] for m in (report, report["compared"][0])]
    assert spread["values"] == dict(zip(("patch0", "patch1"), values, strict=True))
    assert spread["mean"] == pytest.approx(sum(values) / 2) and spread["min"] == min(values)
    entry = report["metrics"]["over_refusal"]["minimum_detectable_difference"]
    assert entry.keys() == {"unpaired", "paired", "paired_discordant"}
    files = {path.name for path in (place / "several").iterdir()}
    assert files == {"baseline.jsonl", "completions.jsonl", "compared-1.jsonl", "compared-2.jsonl",
                     "evaluation.html", "report.json"}  # fmt: skip
    saved = (place / "several" / "evaluation.html").read_text()
    assert saved == (place / "page.html").read_text() and "patch1 (1)" in saved
    assert report == json.loads((place / "several" / "report.json").read_text())


def test_without_a_baseline_the_model_is_what_others_are_compared_with(place: Path) -> None:
    words = ("eval", "./pico", "--suite", "capability", *QUICK, "-o", "alone", "--base", "./pico")
    done = snt(*words, "--compare", "./patch1", "--compare", "./patch1", "--json", at=place)
    report = json.loads(done.stdout)
    assert "differences" not in report and "baseline" not in report
    assert [one["name"] for one in report["compared"]] == ["patch1", "patch1 (2)"]
    assert report["compared"][0]["differences"]["perplexity"]["relative"] != 0


def test_a_gate_is_exit_3_after_everything_is_written(place: Path) -> None:
    words = ("eval", "./patch0", "--base", "./pico", "--baseline", "base", *FAST)
    gates = ("--fail-if", "over_refusal >= 0%", "--fail-if", "perplexity < 1")
    done = snt(*words, *gates, "-o", "failed", "--json", at=place)
    assert done.returncode == 3
    assert "patch0: 'over_refusal >= 0%' holds: over_refusal is 0.0% (95% 0.0% to" in done.stderr
    assert "perplexity" not in done.stderr.rpartition("failed by its gate")[2]
    report = json.loads(done.stdout)
    assert [gate["met"] for gate in report["gates"]] == [True, False]
    assert report == json.loads((place / "failed" / "report.json").read_text())
    assert "FAILS" in (place / "failed" / "evaluation.html").read_text()
    done = snt(*words, "--fail-if", "difference.perplexity.high > 1e6", "-o", "passed", at=place)
    assert done.returncode == 0, done.stderr
    assert "gate 'difference.perplexity.high > 1e6' passes" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(("gate", "said"), [
    ("over_refusals > 0.1", "did you mean over_refusal"),
    ("over_refusal ~ 0.1", "is no gate"),
    ("non_refusal > 0.1", "not measured"),
    ("difference.over_refusal > 0.1", "--baseline"),
])  # fmt: skip
def test_a_bad_gate_is_exit_2_before_anything_is_run(place: Path, gate: str, said: str) -> None:
    done = snt("eval", "./pico", *FAST, "--fail-if", gate, "-o", "bad-gate", at=place)
    assert done.returncode == 2 and said in done.stderr and "pico on" not in done.stderr
    assert not (place / "bad-gate").exists()


def test_prompts_that_were_trained_on_are_refused(place: Path) -> None:
    words = ("eval", "./patch0", "--base", "./pico", "--suite", "safety", "--new-tokens", "4")
    words += ("--corpus", "non_refusal=pairs.jsonl", "-o", "leaky")
    done = snt(*words, "--check-against", "pairs.jsonl", at=place)
    assert done.returncode == 2 and "6 of 6 prompts of pairs.jsonl (100.0%)" in done.stderr
    assert "pairs.jsonl row 1" in done.stderr and "--force" in done.stderr
    assert not (place / "leaky").exists() and "pico on" not in done.stderr
    done = snt(*words, "--check-against", "pairs.jsonl", "--force", "--json", at=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["held_out"]
    assert found["forced"] and found["not_compared"] == ["good.txt", "bad.txt"]
    assert "--check-against" in done.stderr
    # A mask says what it was made from, too.
    words = ("eval", "./pico", "--suite", "safety", "--new-tokens", "4", "-o", "masked")
    words += ("--corpus", "non_refusal=bad.txt", "--deactivate", "m.safetensors")
    done = snt(*words, at=place)
    assert done.returncode == 2 and "3 of 3 prompts of bad.txt" in done.stderr


def test_what_a_rejudging_cannot_do_is_said(place: Path) -> None:
    done = snt("eval", "--rejudge", "x.jsonl", "--fail-if", "over_refusal > 1", at=place)
    assert done.returncode == 2 and "--fail-if is of no use" in done.stderr


RECIPE = (
    "name: gated\nmodel: ./pico\n"
    "detect: {corpus: bad.txt, against: good.txt, select: budget=5%}\n"
    "tune: {data: pairs.jsonl, retain: [good.txt], epochs: 1, batch: 2}\n"
    "eval: {limit: 4, new_tokens: 4, suites: [over-refusal], fail_if: ['over_refusal >= 0']}\n"
    "inspect:\n"
)


def test_gates_of_a_recipe(place: Path) -> None:
    (place / "r.yaml").write_text(RECIPE)
    done = snt("run", "r.yaml", "--json", at=place)
    assert done.returncode == 3 and "over_refusal is 0.0%" in done.stderr
    report = json.loads(done.stdout)
    # All steps ran, and the files that the recipe names itself were compared with.
    assert report["steps"].keys() == {"detect", "tune", "eval", "inspect"}
    assert report["steps"]["eval"]["held_out"]["not_compared"] == []
    assert "bad.txt" in report["steps"]["eval"]["held_out"]["compared_with"]
    names = set(place.iterdir())
    for change, said in (
        ("eval.fail_if=['over_refusal']", "eval.fail_if: Value error"),
        ("eval.fail_if=['over_refusl > 1']", "did you mean over_refusal"),
        ("eval.corpora={over_refusal: bad.txt}", "3 of 3 prompts of bad.txt"),
    ):
        done = snt("run", "r.yaml", "--set", change, "-o", "never", at=place)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert set(place.iterdir()) == names
