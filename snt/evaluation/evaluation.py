"""The result of an evaluation: its report, its files, what is summed up over its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snt import __version__
from snt.atomic import whole_directory, write_json, write_text
from snt.evaluation.compared import (
    ComparedModel,
    differences_json,
    figures_by_model,
)
from snt.evaluation.comparison import metric_values
from snt.evaluation.completions import Completion, write_completions
from snt.evaluation.gates import Gate, GateResult, check_gates, raise_if_met
from snt.evaluation.held_out import HeldOut
from snt.evaluation.measurement import Measurement
from snt.evaluation.seeds import Origin, SeedGroup, distinct, seed_groups
from snt.evaluation.statistics import PairedDifference


@dataclass(frozen=True)
class Evaluation:
    """What a model did in the suites, and what a baseline did on the same prompts."""

    model: str
    directory: Path
    measured: Measurement
    baseline_model: str | None
    baseline: Measurement | None
    differences: Mapping[str, PairedDifference]
    perplexity_change: tuple[float, float, float] | None
    description: Mapping[str, Any]
    seconds: float
    peak_bytes: int
    name: str
    compared: tuple[ComparedModel, ...] = ()
    seeds: tuple[SeedGroup, ...] = ()
    held_out: HeldOut | None = None
    gates: tuple[GateResult, ...] = ()
    baseline_description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        """The HTML report."""
        return self.directory / "evaluation.html"

    def check(self) -> None:
        """Raises NegativeResult (exit 3) when a gate was met; every result is on disk by then."""
        raise_if_met(self.gates)

    def as_json(self) -> dict[str, Any]:
        """The report of `snt eval --json`."""
        document: dict[str, Any] = {
            "model": self.model,
            "name": self.name,
            **self.description,
            "metrics": self.measured.as_json(),
            "completions": str(self.directory / "completions.jsonl"),
            "replies_reused": self.measured.reused,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "snt": __version__,
        }
        if self.baseline is not None:
            document["baseline"] = {
                "model": self.baseline_model,
                **self.baseline_description,
                "metrics": self.baseline.as_json(),
                "completions": str(self.directory / "baseline.jsonl"),
            }
            document["differences"] = differences_json(self.differences, self.perplexity_change)
        if self.compared:
            document["compared"] = [
                one.as_json(self.directory / replies_file(number))
                for number, one in enumerate(self.compared, start=1)
            ]
            document["seeds"] = [group.as_json() for group in self.seeds]
        if self.held_out is not None:
            document["held_out"] = self.held_out.as_json()
        document["gates"] = [result.as_json() for result in self.gates]
        document["page"] = str(self.page)
        return document

    def replies(self) -> dict[str, tuple[Completion, ...]]:
        """The replies of every model, the baseline first, by the file they are saved in."""
        found = {} if self.baseline is None else {"baseline.jsonl": self.baseline.completions}
        found["completions.jsonl"] = self.measured.completions
        for number, one in enumerate(self.compared, start=1):
            found[replies_file(number)] = one.measured.completions
        return found

    def harness(self) -> dict[str, Mapping[str, Any]]:
        """What lm-evaluation-harness itself returned for each model, by the file it is saved in."""
        measured = {"harness.json": self.measured, "baseline-harness.json": self.baseline}
        for number, one in enumerate(self.compared, start=1):
            measured[f"compared-{number}-harness.json"] = one.measured
        return {
            file: one.tasks.raw
            for file, one in measured.items()
            if one is not None and one.tasks is not None
        }


def summed_up(
    result: Evaluation, origins: Sequence[Origin | None], gates: Sequence[Gate]
) -> Evaluation:
    """Distinct names, the seeds of each setting, the answers of the gates; MODEL's origin first."""
    names = distinct([result.name, *(one.name for one in result.compared)])
    measured = (result.measured, *(one.measured for one in result.compared))
    values = {name: metric_values(one) for name, one in zip(names, measured, strict=True)}
    result = replace(
        result,
        name=names[0],
        compared=tuple(
            replace(one, name=name) for one, name in zip(result.compared, names[1:], strict=True)
        ),
        seeds=seed_groups(dict(zip(names, origins, strict=True)), values),
    )
    return replace(result, gates=check_gates(gates, figures_by_model(result.as_json())))


def save(result: Evaluation) -> None:
    """Replies, report and page, all of them or none."""
    from snt.report.evaluation_page import evaluation_page

    document, replies = result.as_json(), result.replies()
    with whole_directory(result.directory) as directory:
        for file, rows in replies.items():
            write_completions(directory / file, rows)
        for file, results in result.harness().items():
            write_json(directory / file, results)
        write_json(directory / "report.json", document)
        page = evaluation_page(document, list(replies.values()))
        write_text(directory / "evaluation.html", page)


def replies_file(number: int) -> str:
    """Where the replies of the further models are saved, counted from 1."""
    return f"compared-{number}.jsonl"
