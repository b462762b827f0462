"""What lm-evaluation-harness found, with the outcome of every document where there is one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snt.evaluation.statistics import Rate

_KEPT = (
    "results",
    "groups",
    "group_subtasks",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
)
_Z = 1.959963984540054  # 95% of a normal distribution


@dataclass(frozen=True)
class TaskMetric:
    """One figure of one task: `name` is `arc_easy.acc`, or `gsm8k.exact_match.strict-match` with
    the harness's filter where that is not `none`.

    `value` and `stderr` are the harness's; `outcomes` per document where each is right or wrong.
    """

    name: str
    task: str
    value: float
    stderr: float | None
    n: int
    few_shot: int | None
    sha256: str
    outcomes: tuple[bool, ...] | None

    @property
    def rate(self) -> Rate | None:
        """The figure as a rate with Wilson's interval, where it is one."""
        return Rate.of_outcomes(self.outcomes) if self.outcomes is not None else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%: Wilson's for a rate, else by the standard error; None without one."""
        if self.rate is not None:
            return self.rate.low, self.rate.high
        if self.stderr is None:
            return None
        return self.value - _Z * self.stderr, self.value + _Z * self.stderr

    def corpus(self) -> dict[str, Any]:
        """The documents, as a report describes a corpus."""
        return {"name": self.task, "rows": self.n, "sha256": self.sha256}

    def as_json(self) -> dict[str, Any]:
        """As it stands in a report."""
        return {
            "value": self.value,
            "n": self.n,
            "stderr": self.stderr,
            "interval": None if self.interval is None else list(self.interval),
            "suite": "capability",
            "task": self.task,
            "num_fewshot": self.few_shot,
            "corpus": self.corpus(),
        }


@dataclass(frozen=True)
class TaskResults:
    """The figures of the tasks asked for, and `raw`, the harness's own tables of all of them."""

    metrics: Mapping[str, TaskMetric]
    raw: Mapping[str, Any]


def task_results(
    found: Mapping[str, Any], asked: Sequence[str], settings: Mapping[str, Any]
) -> TaskResults:
    """Read the dictionary that `lm_eval.simple_evaluate` gave.

    A group that has a figure of its own (mmlu) stands for its tasks; those of others are listed.
    """
    results, subtasks = found["results"], found.get("group_subtasks", {})
    listed: list[str] = []

    def take(name: str) -> None:
        if name in results and any(map(_figure, results[name])):
            listed.append(name)
        else:
            for child in subtasks.get(name, ()):
                take(child)

    for name in asked:
        take(name)
    if not listed:
        listed = list(results)
    metrics: dict[str, TaskMetric] = {}
    for task in dict.fromkeys(listed):
        for key, value in results[task].items():
            if _figure(key) and isinstance(value, int | float):
                one = _metric(found, task, key)
                metrics[one.name] = one
    raw = {key: found[key] for key in _KEPT if key in found}
    version = importlib.metadata.version("lm-eval")
    return TaskResults(metrics, _plain({**raw, "settings": settings, "lm_eval": version}))


def _figure(key: str) -> bool:
    """`acc,none` is a figure; `acc_stderr,none`, `alias` and `sample_len` are not."""
    return "," in key and not key.partition(",")[0].endswith("_stderr")


def _metric(found: Mapping[str, Any], task: str, key: str) -> TaskMetric:
    measure, _, filtered = key.partition(",")
    results = found["results"][task]
    leaves = _leaves(task, found.get("group_subtasks", {}))
    error = results.get(f"{measure}_stderr,{filtered}")
    stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
    value = float(results[key])
    outcomes = None
    if leaves == [task]:
        rows = [row for row in found["samples"][task] if row["filter"] == filtered]
        values = [row.get(measure) for row in rows]
        # Only of a mean of ones and zeros is the share the figure itself.
        if values and all(v in (0, 1) for v in values) and sum(values) / len(values) == value:
            outcomes = tuple(bool(v) for v in values)
    digest = hashlib.sha256()
    for leaf in leaves:
        hashes = [row["doc_hash"] for row in found["samples"][leaf]]
        digest.update(json.dumps([leaf, list(dict.fromkeys(hashes))]).encode())
    n = sum(int(found["n-samples"][leaf]["effective"]) for leaf in leaves)
    name = ".".join((task, measure, *(() if filtered == "none" else (filtered,))))
    shots = found["n-shot"].get(leaves[0])
    return TaskMetric(name, task, value, stderr, n, shots, digest.hexdigest(), outcomes)


def _leaves(task: str, subtasks: Mapping[str, Sequence[str]]) -> list[str]:
    children = subtasks.get(task, ())
    return [leaf for child in children for leaf in _leaves(child, subtasks)] or [task]


def _plain(value: Any) -> Any:
    """JSON's own types: the harness's tables hold numpy numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    item = value.item() if hasattr(value, "item") else value
    return item if isinstance(item, str | int | float | bool) or item is None else str(item)
