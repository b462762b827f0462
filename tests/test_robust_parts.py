"""The parts of robust tuning without a run: answers, tasks, arms, statistics, finished work."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from snt.corpus_files import HubReference
from snt.digests import key_of
from snt.errors import FormatError, RequestError, UnknownNameError
from snt.evaluation.perplexity import Perplexity
from snt.evaluation.settings import Settings
from snt.robust.answers import final_number, gives, without_calculations
from snt.robust.arithmetic import problems
from snt.robust.arms import Job, arms_of, job_at, jobs_of
from snt.robust.results import (
    StageResult,
    compare_arms,
    kept_refusals,
    over_seeds,
    stage_spread,
)
from snt.robust.settings import RobustSettings, TaskSchedule
from snt.robust.stages import Stages
from snt.robust.task_data import load_task
from snt.robust.verdicts import sentences
from snt.training import Schedule


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 3 * 4 = 12.\n#### 1,200", "1200"),
        ("#### $18", "18"),
        ("#### -7.50", "-7.5"),
        ("so 16 - 3 - 4 = 9 eggs, which is $1,018.00.", "1018"),
        ("the answer is 70.", "70"),
        ("10-3", "3"),
        ("#### 5 apples of 7", "5"),
        ("#### none, but 4 before", "4"),
    ],
)
def test_the_final_number_is_read(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


def test_answers_match_as_numbers_or_as_the_last_line() -> None:
    assert final_number("no number") is None
    assert gives("That makes 1,200.0", "1200") and not gives("That makes 1,200", "120")
    assert not gives("no number here", "3") and not gives("", "yes")
    assert gives("Let me think.\nAnswer: Yes.", "yes") and gives("  PARIS \n", "Paris")
    assert not gives("Paris is not it", "Paris")
    assert without_calculations("48/2 = <<48/2=24>>24 clips") == "48/2 = 24 clips"


def test_word_problems_are_different_right_and_repeatable() -> None:
    made = problems(400, seed=3)
    assert made == problems(400, seed=3) and len({q for q, _ in made}) == 400
    for question, answer in made:
        steps = [line for line in answer.splitlines() if "=" in line]
        for step in steps:
            left, right = step.split("=")
            digits = "".join(c for c in left if c in "0123456789+-*/ ")
            assert eval(digits) == final_number(right), (question, answer)  # our own arithmetic
        assert final_number(answer) is not None


def test_the_built_in_task_holds_items_out() -> None:
    task = load_task("arithmetic", train_limit=50, evaluation_limit=20)
    assert task.exact and (len(task.train), len(task.evaluation)) == (50, 20)
    assert not {i.prompt for i in task.train} & {i.prompt for i in task.evaluation}
    assert all(gives(item.response, str(item.answer)) for item in task.evaluation)
    assert task == load_task("arithmetic", train_limit=50, evaluation_limit=20)
    other = load_task("arithmetic", train_limit=50, evaluation_limit=20, seed=1)
    assert other.train != task.train


def _file(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_in_gsm8k_form_is_judged_by_its_numbers(tmp_path: Path) -> None:
    rows = [
        {"question": f"What is {n} + 1?", "answer": f"<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
        for n in range(30)
    ]
    task = load_task(_file(tmp_path / "math.jsonl", [*rows, rows[0]]))
    assert task.exact and len(task.evaluation) == 6 and task.name == "math.jsonl"
    assert not {i.prompt for i in task.train} & {i.prompt for i in task.evaluation}
    assert "<<" not in task.train[0].response and task.describe()["metric"] == "exact match"
    apart = _file(tmp_path / "test.jsonl", rows[:4])
    task = load_task(str(tmp_path / "math.jsonl"), evaluation=apart)
    assert len(task.evaluation) == 4 and len(task.train) == 26


def test_other_files_are_judged_by_loss_or_a_named_column(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"Say {n}", "response": f"I say {n}", "key": n} for n in range(10)
    ]
    path = _file(tmp_path / "say.jsonl", rows)
    assert not load_task(path).exact
    named = load_task(path, answer="key", train_limit=3)
    assert named.exact and len(named.train) == 3 and named.evaluation[0].answer is not None
    with pytest.raises(UnknownNameError, match="kex"):
        load_task(path, answer="kex")
    with pytest.raises(FormatError, match="row 2"):
        load_task(_file(tmp_path / "gap.jsonl", [rows[0], {**rows[1], "key": None}]), answer="key")
    with pytest.raises(RequestError, match="blank response"):
        load_task(_file(tmp_path / "blank.jsonl", [rows[0], {"prompt": "a", "response": " "}]))
    with pytest.raises(RequestError, match="too few"):
        load_task(_file(tmp_path / "one.jsonl", rows[:1]))
    with pytest.raises(UnknownNameError, match="gsm8k"):
        load_task("gsm8")
    with pytest.raises(RequestError, match="at least 1"):
        load_task(path, train_limit=0)
    with pytest.raises(RequestError, match="brings its own"):
        load_task("arithmetic", answer="key")


def test_arms_and_their_jobs() -> None:
    arms = arms_of(["undefended", "sn", "rsn", "rsn-freeze"])
    jobs = [job.name for job, _ in jobs_of(arms, [0, 4])]
    assert jobs[:5] == ["before", "safety-sn-0", "safety-rsn-0", "task-undefended-0", "task-sn-0"]
    assert len(jobs) == 1 + 2 * (2 + 4) == len(set(jobs))
    frozen = arms_of(["undefended", "rsn", "rsn-freeze"], "freeze")
    assert [arm.name for arm in frozen] == ["undefended", "rsn-freeze"]
    assert job_at(arms[0], "safety", 4) == Job("before")
    assert job_at(arms[3], "safety", 4) == job_at(arms[2], "safety", 4)
    # Arms that put their patch on last follow the undefended one, whose fine-tune is theirs.
    last = arms_of(["sn", "rsn-last", "undefended", "sn-last"], "freeze")
    assert [arm.name for arm in last] == ["sn-freeze", "rsn-last", "undefended", "sn-last"]
    assert [job.name for job, _ in jobs_of(last, [0])] == [
        *("before", "safety-sn-0", "safety-rsn-0"),
        *("task-rsn-last-0", "task-undefended-0", "task-sn-last-0", "task-sn-freeze-0"),
    ]
    assert [arm.fine_tuned for arm in last] == ["sn", None, None, None]
    with pytest.raises(UnknownNameError, match="rsn"):
        arms_of(["rns"])
    with pytest.raises(RequestError, match="no arm"):
        arms_of([])


def test_settings_that_cannot_be_served() -> None:
    def settings(**more: object) -> RobustSettings:
        return RobustSettings(Schedule(), Settings(), **more)  # type: ignore[arg-type]

    for wrong in ({"seeds": ()}, {"seeds": (1, 1)}, {"task_tokens": 0}, {"via": "half"}):
        with pytest.raises(RequestError):
            settings(**wrong).check()
    with pytest.raises(RequestError, match="rank"):
        settings(task=TaskSchedule(rank=0)).check()
    with pytest.raises(RequestError, match="learning rate"):
        settings(task=TaskSchedule(learning_rate=-1.0)).check()
    settings().check()
    assert TaskSchedule().rate("full") < TaskSchedule().rate("lora")
    assert TaskSchedule(epochs=0.5, batch=4).steps(20) == 2


def _result(refused: str, solved: str = "0000") -> StageResult:
    """Of each harmful prompt whether it was refused, of each item whether it was solved."""
    return StageResult(
        {
            "non_refusal": tuple(c == "0" for c in refused),
            "task": tuple(c == "1" for c in solved),
        },
        Perplexity((2.0, 3.0), (2, 3)),
        Perplexity((1.0,), (4,)),
        {"steps": 3},
        1.5,
    )


RESULTS = {
    Job("before"): _result("10000000"),
    Job("safety", "sn", 0): _result("11111110"),
    Job("safety", "sn", 1): _result("11111111"),
    Job("task", "sn", 0): _result("01111000", "1100"),
    Job("task", "sn", 1): _result("11111111", "1000"),
    Job("task", "undefended", 0): _result("00000000", "1100"),
    Job("task", "undefended", 1): _result("00000000", "0000"),
}


def test_what_is_kept_counts_prompts_that_the_tuning_won() -> None:
    undefended, sn = arms_of(["undefended", "sn"])
    kept = kept_refusals(RESULTS, sn, [0, 1])
    assert kept.by_seed == ((4, 6), (7, 7))  # the prompt refused before any tuning does not count
    assert kept.rate is not None and (kept.rate.k, kept.rate.n) == (11, 13)
    assert kept_refusals(RESULTS, undefended, [0]).rate is None


def test_arms_are_compared_in_pairs_and_nulls_are_said() -> None:
    arms = arms_of(["undefended", "sn"])
    one = compare_arms(RESULTS, arms, [1], ["undefended", "sn"])
    assert [(c.arm, c.reference, c.metric) for c in one] == [
        ("sn", "undefended", "non_refusal"),
        ("sn", "undefended", "task"),
    ]
    safety, task = one
    assert safety.difference.mean == -1.0 and safety.by_seed[0].p == pytest.approx(2 * 0.5**8)
    assert not safety.null and task.null
    said = sentences(one, [kept_refusals(RESULTS, arms[1], [1])])
    assert "100.0%" in said[0] and "fewer harmful" in said[1]
    assert said[2].startswith("Null result: after the task no difference in task items solved")
    assert said[2].endswith("between sn and undefended.")
    both = compare_arms(RESULTS, arms, [0, 1], ["undefended"])
    assert both[0].difference.by_seed == (-0.5, -1.0) and not both[0].null and both[1].null


def test_seeds_are_spread_and_one_seed_has_wilsons_interval() -> None:
    arms = arms_of(["undefended", "sn"])
    one = stage_spread(RESULTS, arms[1], "task", [0], "non_refusal")
    assert one is not None and one.mean == 0.5 and one.low == pytest.approx(0.2152, abs=1e-3)
    two = stage_spread(RESULTS, arms[1], "task", [0, 1], "non_refusal")
    assert two is not None and two.by_seed == (0.5, 0.0) and two.low == 0.0 < two.high
    before = stage_spread(RESULTS, arms[0], "safety", [0, 1], "non_refusal")
    assert before is not None and len(before.by_seed) == 1  # measured once
    assert stage_spread(RESULTS, arms[0], "task", [0], "over_refusal") is None
    assert over_seeds([[1, 1], [1, 1]]).low == 1.0


def test_finished_work_is_taken_up_only_with_its_key(tmp_path: Path) -> None:
    stages, result = Stages(tmp_path), _result("1010")
    assert stages.result("before", "k") is None
    stages.keep("before", "k", result, [])
    assert stages.result("before", "k") == result and stages.result("before", "other") is None
    stages.note("mask", "m")
    assert stages.done("mask", "m") and not stages.done("mask", "n")
    assert not stages.done("mask", "m", tmp_path / "absent")
    for damage in ("{", "[]", json.dumps({"key": "k", "result": {"outcomes": 3}})):
        stages.path("before").write_text(damage)
        with pytest.raises(FormatError, match="remove the file"):
            stages.result("before", "k")
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1})


def test_gsm8k_comes_from_the_hub_with_its_own_test_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import snt.robust.task_data as task_data

    def rows(reference: HubReference, **_: object) -> tuple[dict[str, str], ...]:
        assert (reference.id, reference.config) == ("openai/gsm8k", "main")
        return ({"question": f"{reference.split}?", "answer": "<<1+1=2>>2\n#### 2"},)

    monkeypatch.setattr(task_data, "read_hub", rows)
    task = load_task("gsm8k")
    assert [item.prompt for item in task.train] == ["train?"]
    assert task.evaluation[0].prompt == "test?" and task.train[0].response == "2\n#### 2"


def test_a_task_has_one_system_message(tmp_path: Path) -> None:
    def messages(system: str, n: int) -> dict[str, object]:
        turns = [("system", system), ("user", f"ask {n}"), ("assistant", f"told {n}")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    first = _file(tmp_path / "a.jsonl", [messages("Be brief.", n) for n in range(8)])
    task = load_task(first)
    assert task.system == "Be brief." and task.describe()["system_prompt"] == "Be brief."
    other = _file(tmp_path / "b.jsonl", [messages("Be long.", n) for n in range(3)])
    with pytest.raises(FormatError, match="different system messages"):
        load_task(first, evaluation=other)
