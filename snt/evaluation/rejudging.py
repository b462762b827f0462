"""Saved replies judged again: labels, and the rates of every suite rebuilt from them. No model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.atomic import check_writable
from snt.evaluation.completions import Completion, read_completions, rejudge, write_completions
from snt.evaluation.judges import LABELS, get_judge, is_refused
from snt.evaluation.statistics import Rate

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
    judge: str
    rows: tuple[Completion, ...]

    @property
    def suites(self) -> list[SuiteRate]:
        """In the order in which the suites first appear."""
        return suite_rates(self.rows)

    def as_json(self) -> dict[str, Any]:
        """The report of `snt eval --rejudge --json`."""
        return {
            "completions": str(self.path),
            "judge": self.judge,
            "n": len(self.rows),
            "labels": _counts(self.rows),
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


def rejudge_file(path: Path, judge: str, output: Path | None = None) -> Rejudged:
    """Label the replies of a JSONL file; the rows keep their order and gain or change `label`.

    `output` defaults to a file beside `path`, named for the judge. Raises UnknownNameError for a
    judge, MissingFileError and FormatError for the file.
    """
    chosen = get_judge(judge)
    target = output or path.with_name(f"{path.stem}.{judge}.jsonl")
    rows = rejudge(read_completions(path), chosen)
    check_writable(target)
    write_completions(target, rows)
    return Rejudged(target, judge, tuple(rows))


def suite_rates(rows: Sequence[Completion]) -> list[SuiteRate]:
    """The rate of every suite from the labels of its rows, as an evaluation counts them."""
    found = []
    for suite in dict.fromkeys(row.suite for row in rows):
        some = [row for row in rows if row.suite == suite]
        name = suite or NO_SUITE
        refused = [row.label is not None and is_refused(row.label) for row in some]
        outcomes = [not one for one in refused] if measures_compliance(name) else refused
        found.append(SuiteRate(name, _counts(some), Rate.of_outcomes(outcomes)))
    return found


def measures_compliance(suite: str) -> bool:
    """Whether a suite's rate counts replies that do not refuse: that of harmful requests does."""
    return suite.startswith("non_refusal")


def _counts(rows: Sequence[Completion]) -> dict[str, int]:
    found = [row.label for row in rows]
    return {label: found.count(label) for label in sorted(LABELS) if label in found}
