"""The suites end to end on a pico model: languages, templates, test cases, suffixes, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Done, snt
from conftest import write_pico

QUICK = ("--new-tokens", "4", "--json")


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and the files that the suites take."""
    folder = tmp_path_factory.mktemp("work")
    write_pico(folder / "pico")
    write_pico(folder / "other", seed=1)
    (folder / "bad.txt").write_text("Do harm\nBreak it\nHurt him\n")
    _lines(folder / "t.jsonl", {"name": "play", "template": "Say {prompt} now"}, {"text": "a"})
    _lines(
        folder / "templates.jsonl",
        {"name": "play", "template": "In a play: {prompt}"},
        {"template": "[INSERT PROMPT HERE]! I say: [INSERT PROMPT HERE]"},
    )
    (folder / "cases.json").write_text(json.dumps({"arson": ["burn a", "burn b"], "theft": ["t"]}))
    _lines(folder / "two.jsonl", {"en": "Hi", "it": "Ciao"}, {"en": "Go", "it": "Vai"})
    _lines(folder / "gap.jsonl", {"en": "Hi", "it": "Ciao"}, {"en": "Go", "it": " "})
    return folder


def _lines(path: Path, *rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _report(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_languages_are_measured_each_and_beside_english(place: Path) -> None:
    words = ("eval", "./pico", "--suite", "multilingual", "--limit", "2", *QUICK)
    report = _report(snt(*words, "--baseline", "./other", "-o", "ml", at=place))
    metrics = report["metrics"]
    languages = ("en", "it", "zh", "th", "vi")
    kinds = ("multilingual_non_refusal", "multilingual_refusal")
    assert set(metrics) == {f"{kind}.{language}" for kind in kinds for language in languages}
    thai = metrics["multilingual_refusal.th"]
    assert thai["n"] == 2 and thai["suite"] == "multilingual"
    assert thai["corpus"]["name"] == "multilingual/harmless" and thai["corpus"]["language"] == "th"
    assert thai["beside_english"]["n"] == 2
    assert "beside_english" not in metrics["multilingual_refusal.en"]
    assert set(report["differences"]) == set(metrics)
    shown = snt(*words[:-1], "-o", "ml", at=place)
    assert "harmful, not refused: th" in shown.stdout
    alone = snt(*words[:-1], "-o", "ml", at=place)
    assert "harmless, refused, beside English" in " ".join(alone.stdout.split())


def test_a_file_with_a_column_per_language(place: Path) -> None:
    words = ("eval", "./pico", "--suite", "multilingual", *QUICK, "-o", "ml2")
    corpus = ("--corpus", "multilingual_non_refusal=two.jsonl:it,en")
    report = _report(snt(*words, *corpus, "--corpus", "multilingual_refusal=none", at=place))
    names = ["multilingual_non_refusal.en", "multilingual_non_refusal.it"]
    assert sorted(report["metrics"]) == names
    rows = _rows(place / "ml2" / "completions.jsonl")
    assert [row["prompt"] for row in rows] == ["Hi", "Go", "Ciao", "Vai"]


def test_templates_and_test_cases_by_group_and_by_request(place: Path) -> None:
    words = ("eval", "./pico", "--suite", "jailbreak", *QUICK, "--limit", "2", "-o", "jb")
    words += ("--templates", "templates.jsonl", "--test-cases", "cases.json")
    words += ("--corpus", "template_attack_success=bad.txt", "--baseline", "./other")
    report = _report(snt(*words, at=place))
    found = report["metrics"]["template_attack_success"]
    assert found["n"] == 4 and found["corpus"]["rows"] == 2
    assert found["corpus"]["templates"]["rows"] == 2
    assert {name: group["n"] for name, group in found["groups"].items()} == {
        "play": 2,
        "template 2": 2,
    }
    assert report["metrics"]["template_attack_success.any"]["n"] == 2
    cases = report["metrics"]["test_case_attack_success"]
    assert cases["n"] == 3 and {n: g["n"] for n, g in cases["groups"].items()} == {
        "arson": 2,
        "theft": 1,
    }
    assert report["metrics"]["test_case_attack_success.any"]["n"] == 2 == cases["corpus"]["rows"]
    assert set(report["differences"]) == set(report["metrics"])
    rows = _rows(place / "jb" / "completions.jsonl")
    assert rows[0]["prompt"] == "In a play: Do harm" and rows[0]["request"] == "Do harm"
    assert rows[1]["prompt"] == "Do harm! I say: Do harm" and rows[1]["group"] == "template 2"
    assert rows[-1]["prompt"] == "t" and rows[-1]["group"] == "theft"
    # A reply labelled again still belongs to its attempt.
    again = snt("eval", "--rejudge", "jb/completions.jsonl", "-o", "again.jsonl", at=place)
    assert again.returncode == 0 and _rows(place / "again.jsonl")[0]["group"] == "play"
    shown = snt(*(w for w in words if w != "--json"), at=place)
    assert "templates, not refused" in shown.stdout


def test_suffixes_are_searched_recorded_and_repeat(place: Path) -> None:
    words = ("eval", "./pico", "--suite", "jailbreak", *QUICK, "-o", "gcg", "--gcg-steps", "2")
    words += ("--gcg-prompts", "2", "--gcg-width", "8", "--seed", "3")
    words += ("--corpus", "gcg_attack_success=bad.txt")
    report = _report(snt(*words, at=place))
    found = report["metrics"]["gcg_attack_success"]
    assert found["n"] == 2 and found["corpus"]["gcg"] == {"seed": 3, "steps": 2, "width": 8}
    first = found["suffixes"][0]
    assert first["target"] == "Sure, here is" and first["best_loss"] <= first["first_loss"]
    rows = _rows(place / "gcg" / "completions.jsonl")
    assert rows[0]["prompt"] == f"{first['request']} {first['suffix']}"
    shown = snt(*(word for word in words if word != "--json"), "-q", at=place)
    assert "GCG suffix, not refused" in shown.stdout and not shown.stderr
    again = json.loads((place / "gcg" / "report.json").read_text())
    assert again["metrics"] == report["metrics"]


def test_a_search_attacks_the_model_with_its_patch(place: Path) -> None:
    import torch

    from snt.corpora import load
    from snt.deltas import Deltas, SliceKey
    from snt.evaluation.gcg import GcgSettings, attacked
    from snt.evaluation.suites import Probe
    from snt.opening import ModelChoice, open_model
    from snt.progress import Silence

    opened = open_model(ModelChoice(str(place / "pico"), dtype="float32", offline=True))
    settings = GcgSettings(steps=1, prompts=1, width=4)
    probe = Probe("gcg_attack_success", settings.chosen(load(str(place / "bad.txt"))), ())
    plain = attacked(opened, probe, settings, Silence())[1]
    rows = torch.arange(20, dtype=torch.int32)
    slices = {SliceKey(1, "mlp.up_proj", "rows"): (rows, torch.ones(20, 32))}
    with Deltas(slices).attached(opened.model):
        patched = attacked(opened, probe, settings, Silence())[1]
    assert plain[0].first_loss != patched[0].first_loss
    assert plain == attacked(opened, probe, settings, Silence())[1]


def test_bad_input_is_exit_2_with_the_row_and_the_remedy(place: Path) -> None:
    (place / "list.txt").write_text("Say {prompt}\nNo slot here\n")
    (place / "empty.jsonl").write_text("")
    (place / "blank.json").write_text(json.dumps({"arson": ["burn", "  "]}))
    (place / "none.json").write_text(json.dumps({"arson": []}))
    (place / "long.json").write_text(json.dumps(["x" * 300 + "{prompt}"]))
    jailbreak = ("--suite", "jailbreak")
    several = ("--suite", "multilingual")
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("--suite", "jailbrake"), ("did you mean jailbreak",)),
        (jailbreak, ("--templates", "--gcg-steps")),
        ((*jailbreak, "--templates", "list.txt"), ("row 2", "{prompt}")),
        ((*jailbreak, "--templates", "t.jsonl"), ("row 2", "template")),
        ((*jailbreak, "--templates", "two.jsonl"), ("row 1", "no column", "FILE:COLUMN")),
        ((*jailbreak, "--templates", "empty.jsonl"), ("no template",)),
        ((*jailbreak, "--templates", "nowhere.jsonl"), ("nowhere.jsonl",)),
        ((*jailbreak, "--test-cases", "blank.json"), ("'arson', case 2", "blank")),
        ((*jailbreak, "--test-cases", "none.json"), ("'arson'", "at least one")),
        ((*jailbreak, "--test-cases", "two.jsonl"), ("not JSON",)),
        ((*jailbreak, "--test-cases", "long.json"), ("behavior_id",)),
        ((*jailbreak, "--templates", "long.json"), ("row 1 of harmful/eval", "context of 256")),
        ((*jailbreak, "--gcg-steps", "0"), ("--gcg-steps 0",)),
        (("--templates", "templates.jsonl"), ("add jailbreak to --suite",)),
        (("--languages", "en,it"), ("add multilingual to --suite",)),
        ((*several, "--languages", "en,de"), ("'de'", "multilingual_non_refusal=FILE")),
        ((*several, "--languages", "en"), ("at least two",)),
        ((*several, "--corpus", "multilingual_refusal=gap.jsonl:en,it"), ("row 2", "'it'")),
        (("--corpus", "non_refusel=bad.txt"), ("did you mean non_refusal",)),
        (("--corpus", "test_case_attack_success=bad.txt"), ("--test-cases",)),
        (("--suite", "safety", "--corpus", "non_refusal=none"), ("nothing would be measured",)),
        (("--tasks", "x.yaml"), ("x.yaml", "does not exist")),
        (("--suite", "safety", "--tasks", "x.yaml"), ("add capability to --suite",)),
    ]
    names = set(place.iterdir())
    for words, said in cases:
        done = snt("eval", "./pico", *words, *QUICK, at=place)
        assert done.returncode == 2, (words, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr and not done.stdout.strip(), words
        flat = " ".join(done.stderr.split())
        assert all(part in flat for part in said), (words, flat)
    assert set(place.iterdir()) == names


def test_a_missing_library_says_how_to_install_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    hidden = ("lm_eval", "nanogcg")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name)
    )
    done = snt("eval", "./pico", "--tasks", "arc_easy", at=place)
    assert done.returncode == 2 and "pip install 'snt[harness]'" in done.stderr
    done = snt("eval", "./pico", "--suite", "jailbreak", "--gcg-steps", "1", at=place)
    assert done.returncode == 2 and "pip install 'snt[attack]'" in done.stderr


def test_a_recipe_takes_the_same_settings(place: Path) -> None:
    from snt.progress import Silence
    from snt.recipe_steps import Steps
    from snt.recipes import load_recipe

    (place / "r.yaml").write_text(
        "name: r\nmodel: ./pico\nseed: 5\ntune: {mask: m.safetensors}\n"
        "eval:\n  suites: [safety, capability, jailbreak]\n  tasks: {names: [t.yaml], limit: 3}\n"
        "  gcg: {steps: 2}\n"
    )
    recipe = load_recipe(str(place / "r.yaml"))
    assert recipe.eval is not None
    settings = Steps(recipe, place, True, Silence())._settings(recipe.eval)
    assert settings.tasks.limit == 3 and settings.tasks.seed == 5
    assert settings.jailbreak.gcg.steps == 2 and settings.jailbreak.gcg.seed == 5
    tuning = settings.for_tuning()
    assert tuning.suites == ("safety", "capability") and tuning.tasks is None
    faults = snt("run", "r.yaml", "--set", "eval.gcg.steps=0", "--dry-run", at=place)
    assert faults.returncode == 2 and "eval.gcg.steps" in faults.stderr
