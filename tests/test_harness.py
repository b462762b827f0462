"""lm-evaluation-harness through snt gives what the harness called by itself gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import snt
from conftest import write_pico

from snt.deltas import Deltas, SliceKey
from snt.errors import RequestError
from snt.evaluation.harness import TaskSettings, draw_documents, run_tasks
from snt.evaluation.task_results import TaskResults, task_results
from snt.opening import ModelChoice, OpenModel, open_model
from snt.progress import Silence

TABLES = ("results", "versions", "n-shot", "n-samples", "higher_is_better", "group_subtasks")
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
{more}
"""
CHOICE = """doc_to_choice: "{{choices}}"
doc_to_target: a
metric_list: [{metric: acc}, {metric: acc_norm}]"""
WRITTEN = """doc_to_target: "{{choices[a]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match}, {metric: bleu}]"""


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing here may ask the Hub; datasets of the tasks go into a folder of their own."""
    import datasets

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        patched.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a folder of tasks: choices, written answers, and a group of both."""
    folder = tmp_path_factory.mktemp("work")
    write_pico(folder / "pico")
    tasks = folder / "tasks"
    tasks.mkdir()
    rows = [
        {"q": f"{n} and one is", "choices": [str(n + 1), chr(97 + n), "x"], "a": n % 2}
        for n in range(12)
    ]
    data = tasks / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, more in (
        ("tiny_choice", "multiple_choice", CHOICE),
        ("tiny_written", "generate_until", WRITTEN),
    ):
        text = TASK.format(name=name, data=data, kind=kind, more=more)
        (tasks / f"{name}.yaml").write_text(text)
    (tasks / "both.yaml").write_text(
        "group: tiny_both\ntask: [tiny_choice]\naggregate_metric_list: [{metric: acc}]\n"
    )
    (tasks / "notes.yaml").write_text("just: notes\n")
    (folder / "broken.yaml").write_text("task: [unclosed\n")
    return folder


@pytest.fixture(scope="module")
def pico_open(place: Path) -> OpenModel:
    """The model, opened in float32."""
    return open_model(ModelChoice(str(place / "pico"), dtype="float32", offline=True))


def paths(place: Path) -> tuple[str, ...]:
    """The two tasks by their files."""
    return tuple(str(place / "tasks" / f"tiny_{kind}.yaml") for kind in ("choice", "written"))


def alone(model: Any, tokenizer: Any, place: Path, **given: Any) -> dict[str, Any]:
    """What somebody gets who calls the harness without snt."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place / "tasks"), include_defaults=False)
    found: dict[str, Any] = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=["tiny_choice", "tiny_written"],
        task_manager=manager,
        **given,
    )
    return found


def equal(found: TaskResults, theirs: dict[str, Any]) -> bool:
    """Whether all tables are the same to the last digit."""
    whole = task_results(theirs, ["tiny_choice", "tiny_written"], {}).raw
    return all(found.raw[table] == whole[table] for table in TABLES if table in theirs)


@pytest.mark.parametrize("template", [False, True])
def test_the_figures_are_those_of_the_harness_alone(
    place: Path, pico_open: OpenModel, template: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.evaluator as evaluator
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole: dict[str, Any] = {}
    plain = evaluator.simple_evaluate

    def kept(*items: Any, **options: Any) -> dict[str, Any]:
        whole.update(plain(*items, **options))
        return whole

    monkeypatch.setattr(evaluator, "simple_evaluate", kept)
    settings = TaskSettings(paths(place), few_shot=2, chat_template=template)
    found = run_tasks(pico_open, settings, Silence())
    monkeypatch.undo()
    theirs = alone(
        AutoModelForCausalLM.from_pretrained(place / "pico"),
        AutoTokenizer.from_pretrained(place / "pico"),
        place,
        num_fewshot=2,
        apply_chat_template=template,
    )
    assert equal(found, theirs)
    # Every document: what was asked, each log-likelihood and reply, each figure.
    assert whole["samples"] == theirs["samples"]
    table = theirs["results"]
    assert found.metrics["tiny_choice.acc"].value == table["tiny_choice"]["acc,none"]
    assert found.metrics["tiny_choice.acc"].stderr == table["tiny_choice"]["acc_stderr,none"]
    assert found.metrics["tiny_written.bleu"].value == table["tiny_written"]["bleu,none"]
    assert set(found.metrics) == {
        "tiny_choice.acc",
        "tiny_choice.acc_norm",
        "tiny_written.exact_match",
        "tiny_written.bleu",
    }


def test_a_patched_model_is_the_merged_model(place: Path, pico_open: OpenModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = run_tasks(pico_open, TaskSettings(paths(place)), Silence())
    merged = AutoModelForCausalLM.from_pretrained(place / "pico", dtype=torch.float32)
    torch.manual_seed(4)
    slices = {}
    for layer in range(2):
        rows, columns = torch.tensor([1, 5, 9], dtype=torch.int32), torch.tensor([2, 7])
        mlp = merged.model.layers[layer].mlp
        up, down = torch.randn(3, 32) * 0.5, torch.randn(32, 2) * 0.5
        slices[SliceKey(layer, "mlp.up_proj", "rows")] = (rows, up)
        slices[SliceKey(layer, "mlp.down_proj", "cols")] = (columns.int(), down)
        with torch.no_grad():
            mlp.up_proj.weight[rows.long()] += up
            mlp.down_proj.weight[:, columns] += down
    with Deltas(slices).attached(pico_open.model):
        patched = run_tasks(pico_open, TaskSettings(paths(place)), Silence())
    theirs = alone(merged, AutoTokenizer.from_pretrained(place / "pico"), place)
    assert equal(patched, theirs)
    assert patched.raw["results"] != plain.raw["results"]


def test_a_limit_draws_documents_by_seed(place: Path, pico_open: OpenModel) -> None:
    def run(seed: int) -> TaskResults:
        settings = TaskSettings(paths(place)[:1], limit=4, seed=seed)
        return run_tasks(pico_open, settings, Silence())

    first, again, other = run(0), run(0), run(1)
    accuracy = first.metrics["tiny_choice.acc"]
    assert accuracy.n == 4 and accuracy.outcomes is not None and len(accuracy.outcomes) == 4
    assert first == again and accuracy.sha256 != other.metrics["tiny_choice.acc"].sha256


def test_a_group_stands_for_its_tasks_and_a_folder_for_what_is_in_it(
    place: Path, pico_open: OpenModel
) -> None:
    found = run_tasks(pico_open, TaskSettings((str(place / "tasks" / "both.yaml"),)), Silence())
    assert list(found.metrics) == ["tiny_both.acc"]
    assert found.metrics["tiny_both.acc"].n == 12 and "tiny_choice" in found.raw["results"]
    assert found.metrics["tiny_both.acc"].interval is not None
    whole = run_tasks(pico_open, TaskSettings((str(place / "tasks"),)), Silence())
    assert list(whole.metrics) == ["tiny_both.acc"]


def test_what_cannot_be_run_is_refused_with_the_remedy(place: Path, pico_open: OpenModel) -> None:
    for name, said in (("broken.yaml", "could not be loaded"), ("tasks/notes.yaml", "task")):
        with pytest.raises(RequestError, match=said):
            run_tasks(pico_open, TaskSettings((str(place / name),)), Silence())
    (place / "bare").mkdir()
    with pytest.raises(RequestError, match="holds no task"):
        TaskSettings((str(place / "bare"),)).check()
    with pytest.raises(RequestError, match="--task-limit 0"):
        TaskSettings(paths(place), limit=0).check()
    # A task's own data that is not there: offline, nothing is fetched.
    gone = (place / "tasks" / "tiny_choice.yaml").read_text().replace("rows.jsonl", "gone.jsonl")
    (place / "gone.yaml").write_text(gone.replace("tiny_choice", "tiny_gone"))
    with pytest.raises(RequestError, match="could not be loaded"):
        run_tasks(pico_open, TaskSettings((str(place / "gone.yaml"),)), Silence())


def test_code_is_not_run_and_no_documents_are_an_error() -> None:
    settings = TaskSettings(("x",))
    with pytest.raises(RequestError, match="runs code"):
        draw_documents({"x": SimpleNamespace(UNSAFE_CODE=True, eval_docs=[1])}, settings)
    with pytest.raises(RequestError, match="0 documents"):
        draw_documents({"x": SimpleNamespace(eval_docs=[])}, settings)
    drawn = draw_documents({"x": SimpleNamespace(eval_docs=range(5))}, settings)
    assert drawn == {"x": [0, 1, 2, 3, 4]}


def test_random_state_and_tokenizer_stay_as_they_were(place: Path, pico_open: OpenModel) -> None:
    import random

    torch.manual_seed(11)
    random.seed(11)
    before = torch.random.get_rng_state(), random.getstate()
    text = str(pico_open.chat.tokenizer.chat_template)
    run_tasks(pico_open, TaskSettings(paths(place)[:1]), Silence())
    assert torch.equal(before[0], torch.random.get_rng_state()) and before[1] == random.getstate()
    assert str(pico_open.chat.tokenizer.chat_template) == text


def test_the_command_reports_tasks_beside_perplexity(place: Path) -> None:
    words = ("eval", "./pico", "--suite", "capability", "--limit", "2", "-o", "ev")
    words += ("--tasks", ",".join(paths(place)), "--task-limit", "6", "--baseline", "base")
    done = snt(*words, "--json", at=place)
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr
    report = json.loads(done.stdout)
    accuracy = report["metrics"]["tiny_choice.acc"]
    assert accuracy["n"] == 6 and accuracy["suite"] == "capability"
    assert accuracy["interval"][0] <= accuracy["value"] <= accuracy["interval"][1]
    assert report["differences"]["tiny_choice.acc"]["difference"] == 0
    raw = json.loads((place / "ev" / "harness.json").read_text())
    assert raw["results"]["tiny_choice"]["acc,none"] == accuracy["value"]
    assert raw["settings"]["limit"] == 6 and (place / "ev" / "baseline-harness.json").is_file()
    shown = snt(*words[:-2], at=place)
    assert "tiny_choice.acc (6)" in shown.stdout and "tiny_written.bleu (6)" in shown.stdout
    # Beside a baseline the names' column is narrow, and they go over two lines.
    shown = "".join(snt(*words, at=place).stdout.split())
    assert "tiny_choice.acc(6)" in shown and "tiny_written.bleu(6)" in shown
