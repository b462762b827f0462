"""`snt robust-tune` end to end on a pico model: arms, protection, resuming, recipes, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Done, snt
from conftest import write_pico

from snt.deltas import masked_slices
from snt.masks import load_mask
from snt.patches import load_patch

TASK = ("--task", "arithmetic", "--task-train-limit", "6", "--task-eval-limit", "2")
SMALL = (
    *("--task-epochs", "1", "--task-batch", "4", "--task-rows", "2", "--task-tokens", "3"),
    *("--data", "pairs.jsonl", "--retain", "good.txt", "--epochs", "1", "--limit", "2"),
    *("--new-tokens", "3", "--foundation-select", "budget=2%", "--dtype", "float32"),
)


@pytest.fixture(autouse=True, scope="module")
def offline() -> Iterator[None]:
    """Nothing here may ask the Hub."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setenv("COLUMNS", "160")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, corpora, pairs and a detected mask."""
    folder = tmp_path_factory.mktemp("robust")
    write_pico(folder / "pico", max_position_embeddings=1024)
    (folder / "bad.txt").write_text("Do harm\nDo more harm\nBreak it\n")
    (folder / "good.txt").write_text("Make tea\nName a day\nAdd two\n")
    pairs = [{"prompt": f"Harm {n}", "response": "No."} for n in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = snt(
        *("detect", "./pico", "--corpus", "bad.txt", "--against", "good.txt"),
        *("--select", "budget=5%", "-o", "m.safetensors", "-q"),
        at=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def run(place: Path, *words: str) -> Done:
    given = ("robust-tune", "./pico", "--mask", "m.safetensors", *TASK, *SMALL)
    return snt(*given, *words, at=place)


def report(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    return report(run(place, "-o", "out", "--json", "--save-models", "-q"))


def test_every_arm_has_every_stage(place: Path, whole: dict[str, Any]) -> None:
    rows = whole["rows"]
    arms = ["undefended", "sn", "rsn", "rsn-freeze", "random"]
    assert [(row["arm"], row["stage"]) for row in rows] == [
        (arm, stage) for arm in arms for stage in ("before", "safety", "task")
    ]
    metrics = {"non_refusal", "over_refusal", "harmless_refusal", "perplexity", "task", "task_loss"}
    assert all(metrics <= row.keys() for row in rows)
    assert whole["masks"]["rsn"]["neurons"] == whole["masks"]["random-0"]["neurons"]
    assert whole["masks"]["rsn"]["neurons"] < whole["masks"]["sn"]["neurons"]
    assert len(whole["verdicts"]) >= 4 and any("Null result" in v for v in whole["verdicts"])
    assert whole == json.loads((place / "out" / "report.json").read_text())
    replies = (place / "out" / "completions" / "task-sn-0.jsonl").read_text().splitlines()
    assert {json.loads(line)["suite"] for line in replies} >= {"non_refusal", "task"}


def test_frozen_neurons_are_the_tuned_ones_to_the_bit(place: Path, whole: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    out = place / "out"
    base, free, frozen = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (
            place / "pico",
            out / "models" / "task-rsn-0",
            out / "models" / "task-rsn-freeze-0",
        )
    )
    patch = load_patch(out / "patches" / "rsn-0" / "patch.safetensors")
    mask = load_mask(out / "masks" / "robust.safetensors")
    assert patch.slices.keys() == masked_slices(mask).keys()
    for key, (indices, delta) in patch.slices.items():
        name, axis = f"model.layers.{key.layer}.{key.module}", int(key.axis == "cols")
        original, trained, kept = (
            model.get_submodule(name).weight.detach().index_select(axis, indices.long())
            for model in (base, free, frozen)
        )
        assert torch.equal(kept, original + delta) and not torch.equal(trained, original + delta)
    training = {row["arm"]: row["training"] for row in whole["rows"] if row["stage"] == "task"}
    assert training["rsn-freeze"]["protected"] > 0 == training["rsn"]["protected"]
    assert training["rsn-freeze"]["protected_changed"] == 0 and training["rsn"]["steps"] == 2


def test_a_patch_put_on_last_is_added_to_the_model_after_the_task(place: Path) -> None:
    from transformers import AutoModelForCausalLM

    import snt.robust.bench as bench

    begun = []
    really = bench.fine_tune
    words = ("-o", "last", "--json", "-q", "--save-models", "--seeds", "0,1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench, "fine_tune", lambda *a, **k: begun.append(a[6]) or really(*a, **k))
        found = report(run(place, *words, "--arms", "undefended,rsn-last,random-last"))
        assert begun == [0, 1]  # one fine-tune a seed for all of them
        (place / "last" / "stages" / "task-random-last-1.json").unlink()
        again = report(run(place, *words, "--arms", "undefended,rsn-last,random-last"))
        assert begun == [0, 1, 1] and _figures(again) == _figures(found)
    assert {one["arm"] for one in found["kept_refusals"]} == {"rsn-last", "random-last"}
    models = place / "last" / "models"
    for arm in ("rsn", "random"):
        mine, plain = (
            AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float32)
            for name in (f"task-{arm}-last-1", "task-undefended-1")
        )
        patch = load_patch(place / "last" / "patches" / f"{arm}-1" / "patch.safetensors")
        moved = 0
        for key, (indices, delta) in patch.slices.items():
            name, axis = f"model.layers.{key.layer}.{key.module}", int(key.axis == "cols")
            weight = plain.get_submodule(name).weight
            weight.data.index_add_(axis, indices.long(), delta)
            moved += int(delta.count_nonzero())
        assert moved
        theirs = plain.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())
    none = report(run(place, *words, "--arms", "rsn-last", "--last-scale", "0"))
    rows = {(r["arm"], r["stage"], r["seed"]): r for r in [*found["rows"], *none["rows"]]}
    # Nothing of a patch on the model after the task is that model.
    assert rows["rsn-last", "task", 1]["task_loss"] == rows["undefended", "task", 1]["task_loss"]


def test_finished_work_is_not_done_again(place: Path, whole: dict[str, Any]) -> None:
    import snt.opening as opening

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opening, "choose", None)  # nothing may load a model
        again = report(run(place, "-o", "out", "--json", "-q"))
    assert again["reused"] == 9 and again["rows"] == whole["rows"]
    # One job lost: it alone is made again, to the same figures.
    (place / "out" / "stages" / "task-rsn-0.json").unlink()
    again = report(run(place, "-o", "out", "--json", "-q"))
    assert again["reused"] == 8
    assert _figures(again) == _figures(whole)
    other = report(run(place, "-o", "out", "--json", "-q", "--task-lr", "1e-3", "--arms", "rsn"))
    assert other["reused"] == 2  # before, and the safety tuning


def _figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found["rows"]]


@pytest.mark.parametrize("via", ["full", "lora"])
def test_rehearsed_neurons_move_by_the_rehearsals_alone(place: Path, via: str) -> None:
    words = ("-o", f"rehearse-{via}", "--via", via, "--protect", "rehearse", "--json", "-q")
    found = report(run(place, *words, "--arms", "undefended,rsn", "--rehearse-every", "1"))
    row = next(r for r in found["rows"] if (r["arm"], r["stage"]) == ("rsn-rehearse", "task"))
    training = row["training"]
    assert training["rehearsed"] == training["steps"] == 2
    assert training["protected"] and not training["protected_changed"]
    again = report(run(place, *words, "--arms", "undefended,rsn-rehearse", "--rehearse-lr", "1e-4"))
    assert again["reused"] == 3  # all but the arm that it is about


def test_lora_seeds_and_freezing_every_arm(place: Path) -> None:
    found = report(
        run(
            place,
            *("-o", "lora", "--json", "-q", "--via", "lora", "--protect", "freeze"),
            *("--arms", "undefended,rsn", "--seeds", "0,1", "--lora-rank", "2"),
        )
    )
    assert {row["arm"] for row in found["rows"]} == {"undefended", "rsn-freeze"}
    frozen = [r for r in found["rows"] if (r["arm"], r["stage"]) == ("rsn-freeze", "task")]
    assert [row["seed"] for row in frozen] == [0, 1]
    assert all(
        r["training"]["protected"] and not r["training"]["protected_changed"] for r in frozen
    )
    task = [row for row in found["summary"] if row["stage"] == "task"]
    assert all(len(row["non_refusal"]["by_seed"]) == 2 for row in task)
    shown = run(
        place,
        *("-o", "lora", "--via", "lora", "--protect", "freeze"),
        *("--arms", "undefended,rsn", "--seeds", "0,1", "--lora-rank", "2"),
    )
    assert "Means of 2 seeds" in shown.stdout and "rsn-freeze, seed 1" in shown.stdout


def test_the_plan_needs_no_model(place: Path) -> None:
    done = snt(
        *("robust-tune", "no/such-model", "--task", "gsm8k", "--dry-run", "--json"),
        *("--seeds", "0,1", "-o", "nowhere"),
        at=place,
    )
    plan = report(done)
    assert len(plan["jobs"]) == 1 + 2 * (3 + 5) and not any(j["on_disk"] for j in plan["jobs"])
    assert not (place / "nowhere").exists()
    shown = snt("robust-tune", "--task", "gsm8k", "--dry-run", at=place)
    assert "task-rsn-freeze-0" in shown.stdout


def test_a_foundation_can_be_a_mask_or_a_corpus(place: Path, whole: dict[str, Any]) -> None:
    given = str(place / "out" / "masks" / "foundation.safetensors")
    for name, foundation in (("mask", given), ("corpus", "good.txt")):
        found = report(
            run(
                place,
                "-o",
                f"f-{name}",
                "--json",
                "-q",
                "--arms",
                "rsn",
                "--foundation",
                foundation,
            )
        )
        assert found["masks"]["rsn"] == whole["masks"]["rsn"], name


def test_a_task_by_loss_alone(place: Path) -> None:
    rows = [{"prompt": f"Say {n}", "response": f"I say {n}."} for n in range(10)]
    (place / "say.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("robust-tune", "./pico", *SMALL, "--task", "say.jsonl", "--arms", "undefended")
    done = snt(*words, "-o", "say", "-q", at=place)
    assert done.returncode == 0, done.stderr
    assert "task loss" in done.stdout and "task solved" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arms", "rns"), "did you mean"),
        (("--seeds", "a,b"), "no whole numbers"),
        (("--seeds", "1,1"), "different ones"),
        (("--via", "half"), "full"),
        (("--protect", "glue"), "freeze"),
        (("--rehearse-every", "0"), "at least 1"),
        (("--last-scale", "-1"), "0 to 2"),
        (("--mask", "absent.safetensors"), "absent.safetensors"),
        (("--foundation", "absent.safetensors"), "absent.safetensors"),
        (("--foundation-select", "budget=100%"), "foundation neurons as well"),
        (("--task", "no-such-task"), "unknown task"),
        (("--task-longest", "20"), "--task-longest"),
        (("--task-batch", "0"), "more than 0"),
    ],
)
def test_what_cannot_be_served_is_exit_2(place: Path, words: tuple[str, ...], said: str) -> None:
    done = run(place, "-o", "refused", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_mask_of_another_model_is_exit_2(place: Path) -> None:
    write_pico(place / "other", intermediate_size=40)
    words = ("robust-tune", "./other", "--mask", "m.safetensors", *TASK, *SMALL, "-o", "x")
    done = snt(*words, at=place)
    assert done.returncode == 2 and "another model" in done.stderr
    assert snt("robust-tune", "./pico", at=place).returncode == 2  # no task


@pytest.mark.parametrize("name", ["rsn-gsm8k", "paper-llama2-7b"])
def test_the_recipes_are_sound(name: str, place: Path) -> None:
    from snt.recipes import load_recipe
    from snt.robust.recipe_step import settings_of

    plan = report(snt("run", name, "--dry-run", "--json", at=place))
    assert [step["step"] for step in plan["steps"]] == ["detect", "robust-tune"]
    recipe = load_recipe(name)
    assert recipe.robust_tune is not None
    settings_of(recipe.robust_tune).check()
    changed = load_recipe(name, ["robust-tune.task=FILE.jsonl"])
    assert changed.robust_tune is not None and changed.robust_tune.task == "FILE.jsonl"


def test_a_recipe_runs_the_arms_with_its_own_mask(place: Path) -> None:
    step = {
        **{"task": "arithmetic", "task_train_limit": 4, "task_eval_limit": 2, "task_epochs": 1},
        **{"task_tokens": 2, "data": "pairs.jsonl", "retain": ["good.txt"], "epochs": 1},
        **{"limit": 2, "new_tokens": 2, "arms": ["undefended", "rsn"], "task_rows": 2},
        "foundation_select": "budget=2%",
    }
    recipe = {
        "name": "small",
        "model": "./pico",
        "detect": {"corpus": "bad.txt", "against": "good.txt", "select": "budget=5%"},
        "robust-tune": step,
    }
    (place / "small.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    done = snt("run", "small.yaml", "-o", "small", "-q", at=place)
    assert done.returncode == 0, done.stderr
    assert "Robust tuning of pico on arithmetic" in done.stdout
    assert (place / "small" / "robust" / "report.json").is_file()
    recipe["robust-tune"] = {**step, "arm": "rsn"}
    (place / "wrong.yaml").write_text(json.dumps(recipe))
    assert snt("run", "wrong.yaml", at=place).returncode == 2
