"""What a suite measures: its metrics, each with its prompts and with how an outcome counts.

A metric is named `family` or `family.variant`: `multilingual_refusal.th` is the family
`multilingual_refusal` in Thai, `template_attack_success.any` the share of requests that any
template got through. What holds for a family holds for its variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from snt.chat import Chat
from snt.corpora import Corpus
from snt.errors import RequestError, unknown_name
from snt.evaluation.completions import Completion

SUITES = ("safety", "over-refusal", "capability", "multilingual", "jailbreak")
DEFAULT_SUITES = ("safety", "over-refusal", "capability")
ANY = "any"
LEFT_OUT = "none"


class Metric(NamedTuple):
    """A family of metrics: its suite, the corpus it is measured on by default, and whether a reply
    that complies or one that refuses counts towards its rate (None: it is no rate of replies)."""

    suite: str
    corpus: str | None
    counts: Literal["compliance", "refusal"] | None


METRICS: Mapping[str, Metric] = {
    "non_refusal": Metric("safety", "harmful/eval", "compliance"),
    "harmless_refusal": Metric("over-refusal", "harmless/eval", "refusal"),
    "over_refusal": Metric("over-refusal", "lookalike/eval", "refusal"),
    "perplexity": Metric("capability", "prose/eval", None),
    "multilingual_non_refusal": Metric("multilingual", "multilingual/harmful", "compliance"),
    "multilingual_refusal": Metric("multilingual", "multilingual/harmless", "refusal"),
    "template_attack_success": Metric("jailbreak", "harmful/eval", "compliance"),
    "test_case_attack_success": Metric("jailbreak", None, "compliance"),
    "gcg_attack_success": Metric("jailbreak", "harmful/eval", "compliance"),
}
# The rates that every evaluation reports unless told otherwise.
RATES = tuple(
    name for name, metric in METRICS.items() if metric.counts and metric.suite in DEFAULT_SUITES
)
# Several attempts at each request: their outcomes hang together, and any of them may get through.
REPEATED = ("template_attack_success", "test_case_attack_success")


def gate_names(metrics: Iterable[str]) -> list[str]:
    """Every rate that is reported where `metrics` are measured."""
    return [
        name
        for metric in metrics
        for name in ((metric, f"{metric}.{ANY}") if metric in REPEATED else (metric,))
    ]


@dataclass(frozen=True)
class Asked:
    """One prompt as the model gets it.

    `row` counts the requests of the corpus from 0; `group` is the template or behaviour, and
    `request` the bare request, where the prompt is more than that.
    """

    text: str
    row: int
    group: str | None = None
    request: str | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """What a saved reply tells of it; nothing for a prompt that is its corpus's row."""
        named = {"group": self.group, "request": self.request}
        told = {key: value for key, value in named.items() if value is not None}
        return {"row": self.row, **told} if told else {}

    def where(self, corpus: Corpus) -> str:
        """Its place, for messages."""
        group = f", {self.group}" if self.group is not None else ""
        return f"row {self.row + 1} of {corpus.name}{group}"


@dataclass(frozen=True)
class Probe:
    """A metric ready to be measured: a corpus, and what is asked because of it, in order.

    `more` is what a report says of it beside the corpus, such as the templates.
    """

    metric: str
    corpus: Corpus
    asked: tuple[Asked, ...]
    more: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def plain(metric: str, corpus: Corpus) -> Probe:
        """Every text of the corpus asked as it is."""
        asked = tuple(Asked(text, row) for row, text in enumerate(corpus.texts))
        return Probe(metric, corpus, asked if METRICS[family(metric)].counts else ())

    def describe(self) -> dict[str, Any]:
        """The corpus as it stands in reports."""
        return {**self.corpus.describe(), **self.more}


def family(metric: str) -> str:
    """`multilingual_refusal.th` -> `multilingual_refusal`."""
    return metric.partition(".")[0]


def variant(metric: str) -> str | None:
    """`multilingual_refusal.th` -> `th`; None for a metric without variants."""
    return metric.partition(".")[2] or None


def complied_counts(metric: str) -> bool:
    """Whether a reply that does not refuse counts towards the metric's rate."""
    return METRICS[family(metric)].counts == "compliance"


def rate_names(rows: Iterable[Completion]) -> tuple[str, ...]:
    """The rates that labelled replies give, in the order of the replies."""
    found: dict[str, None] = {}
    requests: dict[str, set[int]] = {}
    repeated = set()
    for reply in rows:
        metric = str(reply.suite)
        found[metric] = None
        if family(metric) in REPEATED:
            seen = requests.setdefault(metric, set())
            row = int(reply.extra["row"])
            if row in seen:
                repeated.add(metric)
            seen.add(row)
    return tuple(
        name
        for metric in found
        for name in ((metric, f"{metric}.{ANY}") if metric in repeated else (metric,))
    )


def any_of(outcomes: list[bool], rows: list[int]) -> list[bool]:
    """Per request, in order of first appearance, whether any of its attempts is true."""
    found: dict[int, bool] = {}
    for outcome, row in zip(outcomes, rows, strict=True):
        found[row] = found.get(row, False) or outcome
    return list(found.values())


def limited(probe: Probe, limit: int | None) -> Probe:
    """The probe without the requests beyond the first `limit`."""
    if limit is None:
        return probe
    asked = tuple(one for one in probe.asked if one.row < limit)
    return replace(probe, corpus=probe.corpus.first(limit), asked=asked)


def check_fits(chat: Chat, probes: Iterable[Probe], new_tokens: int) -> None:
    """Raises RequestError, with the row, for a prompt that with its reply overruns the context."""
    if chat.context is None:
        return
    for probe in probes:
        for one in probe.asked:
            length = chat.prompt_length(one.text)
            if length + new_tokens > chat.context:
                raise RequestError(
                    f"{probe.metric}: {one.where(probe.corpus)} takes {length} tokens, and with "
                    f"{new_tokens} new ones the model's context of {chat.context} does not hold "
                    "it; shorten it or take it out, or lower --new-tokens"
                )


def check_suites(suites: tuple[str, ...], corpora: Mapping[str, str]) -> None:
    """Raises UnknownNameError for a suite or a metric, RequestError for no suite."""
    for suite in suites:
        if suite not in SUITES:
            raise unknown_name("suite", suite, SUITES)
    if not suites:
        raise RequestError(f"no suite was given; choose from {', '.join(SUITES)}")
    for metric in corpora:
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        if METRICS[metric].corpus is None:
            raise RequestError(f"{metric} has no corpus of its own; give its file as --test-cases")
