"""Saved replies judged again, and a judge beside a person, as tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from snt.evaluation.judges import LABELS
from snt.evaluation.labelling import Agreement, JudgeAgreement, ToLabel
from snt.evaluation.rejudging import Rejudged
from snt.report.figures import agreement_line, interval, percent
from snt.report.tables import table


def rejudged_table(found: Rejudged) -> list[RenderableType]:
    """Labels and the rate of every suite."""
    made = table("suite", *LABELS, "rate", "95%")
    made.columns[0].no_wrap = True
    made.title = f"{len(found.rows)} replies, judge {found.judge!r}"
    made.title_justify = "left"
    for one in found.suites:
        made.add_row(
            one.suite,
            *(str(one.counts.get(label, 0)) for label in LABELS),
            percent(one.rate.rate),
            interval((one.rate.low, one.rate.high)),
        )
    complied = [one.suite for one in found.suites if one.counts_compliance]
    what = "rate: of refusals"
    if complied:
        what += f", in {', '.join(complied)} of replies that do not refuse"
    lines = [
        f"{what}; intervals: Wilson",
        *_judges(found.labels),
        f"labelled replies: {found.path}",
    ]
    return [made, *lines]


def _judges(labels: Mapping[str, Any]) -> list[str]:
    """A line for every further judge: its labels, and how far it agrees with the first."""
    first, *others = labels["judges"]
    lines = []
    for name in others:
        counts = ", ".join(f"{label} {count}" for label, count in labels["judges"][name].items())
        lines.append(f"judge {name!r}: {counts}")
    if "agreement" in labels:
        both = labels["agreement"]
        lines.append(agreement_line((first, others[0]), both["share"], both["kappa"]))
    return lines


def sample_text(made: ToLabel) -> list[RenderableType]:
    """What to do with a sample."""
    return [
        f"{made.rows} of {made.distinct} distinct replies to label: {made.path}\n"
        f"write {', '.join(LABELS[:-1])} or {LABELS[-1]} as each label, then give the file to "
        "--labels"
    ]


def agreement_table(found: JudgeAgreement) -> list[RenderableType]:
    """Accuracy and kappa, and who said what."""
    figures = table("judge and person agree on", "accuracy", "95%", "kappa")
    figures.title = f"judge {found.judge!r} beside {found.label_file.name}"
    figures.title_justify = "left"
    for name, one in (
        ("all labels", found.all_labels),
        ("refusal or partial against the rest", found.refusing),
    ):
        accuracy = one.accuracy
        figures.add_row(
            name,
            percent(accuracy.rate),
            interval((accuracy.low, accuracy.high)),
            "undefined" if one.kappa is None else f"{one.kappa:.3f}",
        )
    n = found.all_labels.accuracy.n
    counted = f"{n} labelled rows, {found.unlabelled} without a label; intervals: Wilson"
    return [figures, _confusion(found.all_labels), counted]


def _confusion(found: Agreement) -> Table:
    made = table("person \\ judge", *found.labels)
    for person, row in found.confusion.items():
        made.add_row(person, *(str(row[label]) for label in found.labels))
    return made
