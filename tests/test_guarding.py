"""The guard: where it stops a run, which point it keeps, and what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snt.backend import get_backend
from snt.chat import Chat
from snt.corpora import Corpus
from snt.errors import RequestError
from snt.guarding import Guard, Point, evenly, guard_of
from snt.training_history import History, latest_checkpoint, remove_others


def _guard(limit: float | None = 0.1) -> Guard:
    return Guard(lambda: (0.0, 0.0), 10, limit)


def test_the_best_point_within_the_limit_is_kept() -> None:
    guard, history, value = _guard(), History(), torch.zeros(2)
    course = [(0, 1.0, 0.0), (10, 0.6, 0.1), (20, 0.3, 0.05), (30, 0.3, 0.05), (40, 0.0, 0.2)]
    for step, non_refusal, over in course:
        value.fill_(step)
        history.add_point(Point(step, non_refusal, over), guard, [value])
        assert history.stopped == (step == 40)
    assert history.best_point == Point(30, 0.3, 0.05)
    history.put_best([value])
    assert value.tolist() == [30.0, 30.0]


def test_without_a_limit_there_is_only_the_curve() -> None:
    history = History()
    for step in (0, 10):
        history.add_point(Point(step, 0.0, 1.0), _guard(None), [torch.zeros(1)])
    assert len(history.curve) == 2 and not history.stopped and history.best_point is None


def test_when_a_point_is_due() -> None:
    assert [step for step in range(1, 36) if _guard().due(step, 35)] == [10, 20, 30, 35]


@pytest.mark.parametrize(("every", "limit"), [(0, None), (5, 1.5), (5, -0.1)])
def test_settings_that_make_no_guard(every: int, limit: float | None) -> None:
    with pytest.raises(RequestError, match="give"):
        Guard(lambda: (0.0, 0.0), every, limit)


def test_prompts_come_from_the_whole_corpus() -> None:
    corpus = Corpus("c", tuple(map(str, range(10))), ())
    assert evenly(corpus, 4) == ["0", "2", "5", "7"] and len(evenly(corpus, 99)) == 10


def test_it_reads_the_beginnings_of_replies(pico: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import snt.guarding as guarding

    model: Any = get_backend("full").load(pico, torch.float32)

    def said(_model: Any, _chat: Any, prompts: Any, *_: Any, **__: Any) -> list[str]:
        return ["I'm sorry, but I can't help with that." if "x" in p else "Sure!" for p in prompts]

    monkeypatch.setattr(guarding, "replies", said)
    chat = Chat(model.tokenizer, model.context)
    harmful, other = (Corpus(text, tuple(text), ()) for text in ("xyxx", "yx"))
    guard = guard_of(model, chat, harmful, other)
    assert guard.measure() == (0.25, 0.5)
    assert [corpus["name"] for corpus in guard.describe()["corpora"]] == ["xyxx", "yx"]


def test_a_history_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    history, guard = History(), _guard()
    history.losses["refuse"] += [0.5, 0.25]
    history.add_point(Point(0, 1.0, 0.0), guard, [torch.zeros(1)])
    history.add_point(Point(10, 0.5, 0.0), guard, [torch.ones(3), torch.zeros(1)])
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    history.save(tmp_path / "checkpoint-5")
    history.save(tmp_path / "checkpoint-10")
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()  # it was cut off
    again = History.load(newest)
    assert (again.losses, again.curve, again.best_point) == (
        history.losses,
        history.curve,
        history.best_point,
    )
    assert [one.tolist() for one in again.best] == [[1.0, 1.0, 1.0], [0.0]]
    remove_others(newest)
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint-10"]
