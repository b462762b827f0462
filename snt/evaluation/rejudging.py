"""Saved replies judged again: labels, and the rates of every suite rebuilt from them. No model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.atomic import check_writable
from snt.evaluation.completions import (
    Completion,
    labels_document,
    read_completions,
    rejudge,
    write_completions,
)
from snt.evaluation.judges import LABELS, counts_against, get_judge, is_refused, judge_plugin
from snt.evaluation.statistics import Rate
from snt.evaluation.suites import METRICS, complied_counts, family

# What replies without a suite are called in a table.
NO_SUITE = "replies"


@dataclass(frozen=True)
class SuiteRate:
    """One suite's labels counted, and the rate that a report prints for it.

    `rate` is of replies that do not refuse where the suite measures those, else of refusals.
    """

    suite: str
    counts: dict[str, int]
    rate: Rate

    @property
    def counts_compliance(self) -> bool:
        """Whether the rate is that of replies which do not refuse."""
        return measures_compliance(self.suite)


@dataclass(frozen=True)
class Rejudged:
    """Replies with new labels, where they were written, and the rates of their suites."""

    path: Path
    labels: Mapping[str, Any]
    rows: tuple[Completion, ...]

    @property
    def judge(self) -> str:
        """The judge whose labels count."""
        return str(self.labels["judge"])

    @property
    def suites(self) -> list[SuiteRate]:
        """In the order in which the suites first appear."""
        return suite_rates(self.rows, judge_plugin(self.judge).scores_harm)

    def as_json(self) -> dict[str, Any]:
        """The report of `snt eval --rejudge --json`."""
        return {
            "completions": str(self.path),
            **self.labels,
            "metrics": {
                one.suite: {
                    "value": one.rate.rate,
                    "n": one.rate.n,
                    "k": one.rate.k,
                    "interval": [one.rate.low, one.rate.high],
                    "judge": self.judge,
                    "labels": one.counts,
                }
                for one in self.suites
            },
        }


def rejudge_file(
    path: Path, judges: Sequence[str], output: Path | None = None, offline: bool = False
) -> Rejudged:
    """Label the replies of a JSONL file; the rows keep their order and gain or change `label`.

    The first of `judges` gives that label, and all stand in `labels`. `output` defaults to a file
    beside `path`, named for the first. Raises UnknownNameError for a judge, UnavailableError for
    one that cannot run, MissingFileError and FormatError for the file.
    """
    opened = [get_judge(name, offline=offline) for name in judges]
    target = output or path.with_name(f"{path.stem}.{judges[0].partition(':')[0]}.jsonl")
    rows = rejudge(read_completions(path), *opened)
    check_writable(target)
    write_completions(target, rows)
    return Rejudged(target, labels_document(rows, opened), tuple(rows))


def suite_rates(rows: Sequence[Completion], scores_harm: bool = False) -> list[SuiteRate]:
    """The rate of every suite from the labels of its rows, as an evaluation counts them.

    A judge of harm says nothing of refusals, so of harmless prompts there is no rate then.
    """
    found = []
    for suite in dict.fromkeys(row.suite for row in rows):
        some = [row for row in rows if row.suite == suite]
        name = suite or NO_SUITE
        if measures_compliance(name):
            outcomes = [r.label is None or counts_against(r.label, scores_harm) for r in some]
        elif scores_harm:
            continue
        else:
            outcomes = [row.label is not None and is_refused(row.label) for row in some]
        found.append(SuiteRate(name, _counts(some), Rate.of_outcomes(outcomes)))
    return found


def measures_compliance(suite: str) -> bool:
    """Whether a suite's rate counts replies that do not refuse: that of harmful requests does."""
    return family(suite) in METRICS and complied_counts(suite)


def _counts(rows: Sequence[Completion]) -> dict[str, int]:
    found = [row.label for row in rows]
    return {label: found.count(label) for label in sorted(LABELS) if label in found}
