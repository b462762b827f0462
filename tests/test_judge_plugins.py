"""The door for judges: found by entry point, opened with a setting, what they answer checked."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snt import plugins
from snt.errors import RequestError, UnavailableError, UnknownNameError
from snt.evaluation import judges
from snt.evaluation.judges import DEFAULT_JUDGES, Judge, get_judge, judge_list, judge_names

ROWS = [("How?", "I can't help with that."), ("Why?", "Because."), ("Café?", "Ünïcode \u2028")]
BUILT_IN = ["refusal", "prefix", "keyword", "logit", "harmbench", "strongreject", "llama-guard"]
ECHO = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(json.dumps({"label": "refusal" if "can't" in row["response"] else "compliance"}))
"""


def installed(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, judges.DOOR.group) for name, value in points]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


def program(folder: Path, code: str) -> str:
    (folder / "judge.py").write_text(code)
    return f"command:{sys.executable} {folder / 'judge.py'}"


def test_built_in_judges_come_through_the_same_door() -> None:
    assert {*BUILT_IN, "command"} <= set(judge_names())
    kinds = {name: judges.judge_plugin(name) for name in judge_names()}
    harm = {name for name, plugin in kinds.items() if plugin.scores_harm}
    assert harm == {"harmbench", "strongreject", "llama-guard"}
    assert {name for name, plugin in kinds.items() if plugin.heuristic} == {
        *("prefix", "keyword", "logit")
    }
    assert all("\n" not in plugin.summary for plugin in kinds.values())


def test_a_plugin_of_anybody_is_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin: Any = SimpleNamespace(
        summary="says no",
        heuristic=True,
        scores_harm=False,
        open_judge=lambda choice: (
            lambda rows: ["refusal" if choice.setting else "empty"] * len(rows)
        ),
    )
    monkeypatch.setitem(sys.modules, "say_no", plugin)
    installed(monkeypatch, ("no", "say_no"))
    assert get_judge("no").labels(ROWS) == ["empty"] * 3
    assert get_judge("no:really").labels(ROWS) == ["refusal"] * 3
    with pytest.raises(UnknownNameError, match="known: no"):
        get_judge("refusal")


def test_broken_and_double_plugins_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ("bad", "nowhere_at_all"), ("odd", "snt.errors"))
    with pytest.raises(UnavailableError, match=r"'bad' \(nowhere_at_all\) cannot be imported: Mod"):
        get_judge("bad")
    with pytest.raises(UnavailableError, match="'odd' .* has no summary, heuristic"):
        get_judge("odd")
    installed(monkeypatch, ("one", "a"), ("one", "b"))
    with pytest.raises(RequestError, match="two judges are named 'one': a and b"):
        get_judge("one")
    installed(monkeypatch, ("one", "a"), ("one", "b"), ("sound", "snt.judges.refusal"))
    assert [(one.name, one.kind) for one in judges.list_judges()] == [
        ("one", "broken"),
        ("sound", "refusal"),
    ]
    installed(monkeypatch)
    with pytest.raises(UnknownNameError, match="install snt again"):
        get_judge("refusal")


def test_what_a_judge_answers_is_checked() -> None:
    def judge(answer: list[str]) -> Judge:
        return Judge("mine", "", False, False, lambda _: answer)

    assert judge(["refusal", "empty", "partial"]).labels(ROWS) == ["refusal", "empty", "partial"]
    assert judge([]).labels([]) == []
    with pytest.raises(RequestError, match="'mine' gave 2 labels for 3 replies"):
        judge(["refusal", "empty"]).labels(ROWS)
    with pytest.raises(RequestError, match="'mine', reply 2: label 'no'"):
        judge(["refusal", "no", "empty"]).labels(ROWS)


def test_judges_as_options_give_them() -> None:
    assert judge_list(["refusal, prefix", "keyword"]) == ("refusal", "prefix", "keyword")
    assert judge_list(["command:a, b", "refusal"]) == ("command:a, b", "refusal")
    assert judge_list(DEFAULT_JUDGES) == DEFAULT_JUDGES == ("refusal", "prefix")
    with pytest.raises(RequestError, match="no judge was given"):
        judge_list([" ,"])
    with pytest.raises(RequestError, match="'refusal' is named twice"):
        judge_list(["refusal,refusal"])
    with pytest.raises(RequestError, match="'harmbench:x' is named twice"):
        judge_list(["harmbench:/a/x", "harmbench:/b/x"])


@pytest.mark.parametrize("name", ["refusal", "prefix", "keyword", "logit"])
def test_judges_without_settings_refuse_one(name: str) -> None:
    with pytest.raises(RequestError, match="takes no setting and was given 'x'"):
        get_judge(f"{name}:x")


def test_logit_needs_the_evaluated_model(pico: Path) -> None:
    with pytest.raises(UnavailableError, match="saved replies bring no model"):
        get_judge("logit")
    from snt.evaluation.refusal_odds import refusal_log_odds, tree_of
    from snt.opening import ModelChoice, open_model

    opened = open_model(ModelChoice(str(pico)))
    prompts = [prompt for prompt, _ in ROWS]
    odds = refusal_log_odds(opened.model, opened.chat, prompts, tree_of(opened.chat))
    assert get_judge("logit", opened).labels(ROWS) == [
        "refusal" if value > 0 else "compliance" for value in odds
    ]


def test_any_program_is_a_judge(tmp_path: Path) -> None:
    judge = get_judge(program(tmp_path, ECHO))
    assert judge.labels(ROWS) == ["refusal", "compliance", "compliance"]
    assert str(tmp_path) not in judge.name
    assert judge.labels([]) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('no')", "line 1: 'no' is not JSON"),
        ('print(\'{"label": "no"}\')', "line 1: .* has no label of refusal, partial"),
        ("print('[]')", "line 1: .* has no label"),
        ('print(\'{"label": "empty"}\')', "wrote 1 lines for 3 replies"),
        ("import sys; sys.exit('out of order')", "ended with exit code 1: out of order"),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "not UTF-8"),
        ("import time; time.sleep(60)", "was not done after 0.5 s"),
    ],
)
def test_a_program_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    if "sleep" in code:
        monkeypatch.setenv("SNT_JUDGE_SECONDS", "0.5")
    with pytest.raises(RequestError, match=said):
        get_judge(program(tmp_path, code)).labels(ROWS)


def test_a_program_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="'no-such-program' cannot be run"):
        get_judge("command:no-such-program").labels(ROWS)
    for setting, said in (("", "needs a program"), ("'a", "cannot be split")):
        with pytest.raises(RequestError, match=said):
            get_judge(f"command:{setting}")
    monkeypatch.setenv("SNT_JUDGE_SECONDS", "soon")
    with pytest.raises(RequestError, match="SNT_JUDGE_SECONDS is 'soon'"):
        get_judge("command:cat")
