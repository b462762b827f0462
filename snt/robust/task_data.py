"""The downstream task: what a fine-tune learns, and the held-out items that it is judged by."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.corpus_files import HubReference, Row, read_hub, read_rows
from snt.errors import FormatError, RequestError, unknown_name
from snt.progress import Progress, Silence
from snt.robust.answers import MARK, final_number, without_calculations
from snt.robust.arithmetic import problems
from snt.training_pairs import pairs_of

# Name -> where its rows to train on and to be judged by are.
HUB_TASKS = {"gsm8k": ("hf:openai/gsm8k:main:train", "hf:openai/gsm8k:main:test")}
BUILT_IN = "arithmetic"
BUILT_IN_ROWS = (2_000, 300)
HELD_OUT = 0.2
MOST_HELD_OUT = 200


@dataclass(frozen=True)
class TaskItem:
    """A prompt, its response, and the answer that is looked for in a reply, None without one."""

    prompt: str
    response: str
    answer: str | None = None


@dataclass(frozen=True)
class Task:
    """Items to train on and items to be judged by, no prompt in both. `name` is never a path.

    `exact`: judged by exact match of the answer; the loss of the responses is measured as well.
    """

    name: str
    train: tuple[TaskItem, ...]
    evaluation: tuple[TaskItem, ...]
    system: str | None = None

    @property
    def exact(self) -> bool:
        """Whether every item to be judged by has an answer."""
        return all(item.answer is not None for item in self.evaluation)

    def describe(self) -> dict[str, Any]:
        """Name, counts and digests, as they stand in reports."""
        return {
            "name": self.name,
            "metric": "exact match" if self.exact else "loss",
            "train": {"rows": len(self.train), "sha256": _digest(self.train)},
            "evaluation": {"rows": len(self.evaluation), "sha256": _digest(self.evaluation)},
            "system_prompt": self.system,
        }


def load_task(
    reference: str,
    *,
    evaluation: str | None = None,
    answer: str | None = None,
    train_limit: int | None = None,
    evaluation_limit: int | None = None,
    seed: int = 0,
    offline: bool = False,
    progress: Progress | None = None,
) -> Task:
    """A task by name (`gsm8k`, `arithmetic`), `hf:ID[:config][:split]`, or a file of pairs.

    Formats as for training pairs. Without `evaluation` a fifth of the rows, at most 200, is held
    out by `seed`. `answer` names the column of the expected answer; without it rows whose responses
    end in `#### N` are judged by N, others by their loss. Rows whose prompt is judged by are not
    trained on. Limits are taken after the draw by `seed`.

    Raises RequestError and children, as `corpora.load_pairs` does, and for too few rows.
    """
    progress = progress or Silence()
    for limit in (train_limit, evaluation_limit):
        if limit is not None and limit < 1:
            raise RequestError(f"a limit of {limit} task rows; give at least 1")
    system: str | None = None
    if reference == BUILT_IN:
        if evaluation is not None or answer is not None:
            raise RequestError(f"the task {BUILT_IN!r} brings its own evaluation; leave yours out")
        made = problems(sum(BUILT_IN_ROWS), seed=0)
        held = [TaskItem(q, a, a.rpartition(MARK)[2].strip()) for q, a in made]
        train, judged = held[: BUILT_IN_ROWS[0]], held[BUILT_IN_ROWS[0] :]
        name = BUILT_IN
    else:
        first, second = HUB_TASKS.get(reference, (reference, evaluation))
        second = evaluation or second
        name, train, system = _items(first, answer, offline, progress)
        if second is None:
            train, judged = _held_out(name, train, seed)
        else:
            _, judged, other = _items(second, answer, offline, progress)
            if other != system:
                raise FormatError(
                    f"{name}: its rows and those of the evaluation have different system messages; "
                    "a task has one"
                )
    judged = _drawn(judged, evaluation_limit, seed)
    asked = {item.prompt for item in judged}
    train = _drawn([item for item in train if item.prompt not in asked], train_limit, seed)
    if not train:
        raise RequestError(f"{name}: no row is left to train on once those to be judged by are out")
    return Task(name, tuple(train), tuple(judged), system)


def _items(
    reference: str, answer: str | None, offline: bool, progress: Progress
) -> tuple[str, list[TaskItem], str | None]:
    name, rows = _rows(reference, offline, progress)
    if answer is not None and rows and answer not in rows[0]:
        raise unknown_name("column", answer, map(str, rows[0]), f"They are those of {name}.")
    pairs = pairs_of(name, rows)
    if pairs.left_out:
        raise RequestError(
            f"{name}: {pairs.left_out} of {len(rows)} rows have a blank response; remove them, for "
            "a task has an answer to every prompt"
        )
    # In GSM8K's format alone are the calculator's notes what they look like.
    cleaned = pairs.format == "gsm8k"
    items = [
        _item(f"{name}, row {number}", row, *pair, answer, cleaned)
        for number, (row, pair) in enumerate(zip(rows, pairs.pairs, strict=True), start=1)
    ]
    return name, items, pairs.system


def _item(
    where: str, row: Row, prompt: str, response: str, answer: str | None, cleaned: bool
) -> TaskItem:
    if answer is not None:
        value = row.get(answer)
        if value is None or not str(value).strip():
            raise FormatError(f"{where}: column {answer!r} is missing or blank; fill it")
        return TaskItem(prompt, response, str(value).strip())
    if MARK in response:
        number = final_number(response)
        if number is not None:
            clean = without_calculations(response) if cleaned else response
            return TaskItem(prompt, clean, format(number, "f"))
    return TaskItem(prompt, response)


def _rows(reference: str, offline: bool, progress: Progress) -> tuple[str, tuple[Row, ...]]:
    if reference.startswith("hf:"):
        parsed = HubReference.parse(reference)
        return parsed.name, read_hub(parsed, offline=offline, progress=progress)
    path = Path(reference)
    known = [BUILT_IN, *HUB_TASKS]
    if not path.suffix and not path.exists():
        raise unknown_name("task", reference, known, "A file is given by its path.")
    return path.name, read_rows(path)


def _held_out(
    name: str, items: Sequence[TaskItem], seed: int
) -> tuple[list[TaskItem], list[TaskItem]]:
    held = min(MOST_HELD_OUT, max(1, round(HELD_OUT * len(items))))
    if len(items) <= held:
        raise RequestError(
            f"{name}: {len(items)} rows are too few to hold some out; give more, or --task-eval"
        )
    order = list(items)
    random.Random(seed).shuffle(order)
    return order[held:], order[:held]


def _drawn(items: Sequence[TaskItem], limit: int | None, seed: int) -> list[TaskItem]:
    """`limit` of the items, in a drawn order: a file may be sorted by subject."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order[:limit]


def _digest(items: Sequence[TaskItem]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.prompt, item.response, item.answer]).encode() + b"\n")
    return digest.hexdigest()
