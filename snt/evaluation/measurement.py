"""Suites on a loaded model: replies, their labels, rates with intervals, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from snt import corpora
from snt.corpora import Corpus
from snt.errors import RequestError, unknown_name
from snt.evaluation.completions import Completion
from snt.evaluation.judges import DEFAULT_JUDGE, get_judge, is_refused
from snt.evaluation.perplexity import Perplexity, perplexity
from snt.evaluation.statistics import PairedDifference, Rate, paired_difference
from snt.generation import Drawing, replies
from snt.opening import OpenModel
from snt.progress import Progress, Silence
from snt.unfinished_replies import UnfinishedReplies

# Metric -> the suite that it belongs to and the corpus that it is measured on by default.
METRICS: Mapping[str, tuple[str, str]] = {
    "non_refusal": ("safety", "harmful/eval"),
    "harmless_refusal": ("over-refusal", "harmless/eval"),
    "over_refusal": ("over-refusal", "lookalike/eval"),
    "perplexity": ("capability", "prose/eval"),
}
SUITES = ("safety", "over-refusal", "capability")
RATES = tuple(metric for metric in METRICS if metric != "perplexity")
NEW_TOKENS = 48


@dataclass(frozen=True)
class Settings:
    """What is measured and how. `corpora` may replace the corpus of a metric.

    `batch_size` None: as many replies at once as the memory holds. `drawing` None: greedy replies.
    """

    suites: tuple[str, ...] = SUITES
    judge: str = DEFAULT_JUDGE
    new_tokens: int = NEW_TOKENS
    batch_size: int | None = None
    limit: int | None = None
    corpora: Mapping[str, str] = field(default_factory=dict)
    drawing: Drawing | None = None

    def chosen(self, offline: bool = False) -> dict[str, Corpus]:
        """The corpus of every metric of the chosen suites. Raises UnknownNameError."""
        for suite in self.suites:
            if suite not in SUITES:
                raise unknown_name("suite", suite, SUITES)
        for metric in self.corpora:
            if metric not in METRICS:
                raise unknown_name("metric", metric, METRICS)
        if not self.suites:
            raise RequestError(f"no suite was given; choose from {', '.join(SUITES)}")
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"a limit of {self.limit} prompts; give at least 1")
        if self.new_tokens < 1:
            raise RequestError(f"{self.new_tokens} new tokens; give at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise RequestError(f"a batch of {self.batch_size} prompts; give at least 1")
        if self.drawing is not None:
            self.drawing.check()
        return {
            metric: corpora.load(self.corpora.get(metric, default), offline=offline).first(
                self.limit
            )
            for metric, (suite, default) in METRICS.items()
            if suite in self.suites
        }

    def generation(self) -> dict[str, Any]:
        """What the replies depend on beside model and prompt."""
        sampling = "greedy" if self.drawing is None else self.drawing.as_json()
        return {"max_new_tokens": self.new_tokens, "sampling": sampling}


@dataclass(frozen=True)
class Measurement:
    """What one model did. `completions` are labelled and in the order of suites and prompts."""

    judge: str
    corpora: Mapping[str, Mapping[str, Any]]
    completions: tuple[Completion, ...]
    perplexity: Perplexity | None
    reused: int = 0

    def outcomes(self, metric: str) -> list[bool]:
        """Per prompt, whether it counts towards the metric's rate."""
        labels = [row.label for row in self.completions if row.suite == metric]
        refused = [label is not None and is_refused(label) for label in labels]
        return [not value for value in refused] if metric == "non_refusal" else refused

    @property
    def rates(self) -> dict[str, Rate]:
        """Rate of every metric that was measured."""
        found = {metric: self.outcomes(metric) for metric in RATES}
        return {metric: Rate.of_outcomes(values) for metric, values in found.items() if values}

    def as_json(self) -> dict[str, Any]:
        """Per metric the value with n and interval, the labels counted, the corpus."""
        document: dict[str, Any] = {}
        for metric, rate in self.rates.items():
            rows = [row for row in self.completions if row.suite == metric]
            document[metric] = {
                **rate_json(rate),
                "suite": METRICS[metric][0],
                "judge": self.judge,
                "labels": {name: sum(row.label == name for row in rows) for name in _labels(rows)},
                "corpus": dict(self.corpora[metric]),
            }
        if self.perplexity is not None:
            document["perplexity"] = {
                "value": self.perplexity.value,
                "n": len(self.perplexity.tokens),
                "tokens": sum(self.perplexity.tokens),
                "suite": "capability",
                "corpus": dict(self.corpora["perplexity"]),
            }
        return document


def measure(
    opened: OpenModel,
    settings: Settings,
    progress: Progress | None = None,
    reuse: Sequence[Completion] = (),
    unfinished: UnfinishedReplies | None = None,
) -> Measurement:
    """Run the chosen suites. Replies in `reuse` that were made the same way are not made again.

    `unfinished` keeps the new ones as they come, for a run that goes on where this one stopped.
    """
    progress = progress or Silence()
    chosen = settings.chosen(opened.offline)
    judge = get_judge(settings.judge)
    made_by = made_by_of(opened, settings)
    known = {(row.suite, row.prompt): row.response for row in reuse if dict(row.made_by) == made_by}
    asked = [
        (metric, text) for metric in chosen if metric in RATES for text in chosen[metric].texts
    ]
    missing = list(dict.fromkeys(item for item in asked if item not in known))
    if missing:
        with progress.task("replies", len(missing), "prompts") as advance:
            texts = [text for _, text in missing]
            new = replies(
                *(opened.model, opened.chat, texts),
                *(settings.new_tokens, settings.batch_size, advance),
                drawing=settings.drawing,
                unfinished=unfinished,
                settings=made_by,
                say=progress.say,
            )
        known |= dict(zip(missing, new, strict=True))
    rows = []
    for metric in chosen:
        for number, text in enumerate(chosen[metric].texts if metric in RATES else ()):
            reply = known[metric, text]
            rows.append(Completion(text, reply, metric, number, made_by, judge.label(text, reply)))
    language = None
    if "perplexity" in chosen:
        texts = list(chosen["perplexity"].texts)
        with progress.task("perplexity", len(texts), "texts") as advance:
            language = perplexity(opened.model, opened.chat, texts, on_batch=advance)
    described = {metric: corpus.describe() for metric, corpus in chosen.items()}
    return Measurement(settings.judge, described, tuple(rows), language, len(asked) - len(missing))


def made_by_of(opened: OpenModel, settings: Settings) -> dict[str, Any]:
    """What made a reply, as it stands in every row of saved completions."""
    description = opened.describe()
    return {
        "model": description["model"]["id"],
        "template": description["template"],
        "system_prompt": description["system_prompt"],
        "settings": {
            **settings.generation(),
            "backend": description["backend"],
            "dtype": description["dtype"],
            "fingerprint": description["fingerprint"],
            "revision": description["model"]["revision"],
            "patch": opened.patch_digest,
            "deactivated": opened.deactivated,
        },
    }


def compare(before: Measurement, after: Measurement) -> dict[str, PairedDifference]:
    """Paired differences, after minus before, of every rate that both measured on the same prompts.

    Raises RequestError when the prompts differ.
    """
    differences = {}
    for metric in before.rates.keys() & after.rates.keys():
        if before.corpora[metric]["sha256"] != after.corpora[metric]["sha256"]:
            raise RequestError(f"{metric}: the two measurements are of different prompts")
        differences[metric] = paired_difference(before.outcomes(metric), after.outcomes(metric))
    return {metric: differences[metric] for metric in RATES if metric in differences}


def perplexity_change(before: Measurement, after: Measurement) -> tuple[float, float, float] | None:
    """Relative change of perplexity with a paired bootstrap interval over texts, as fractions."""
    if before.perplexity is None or after.perplexity is None:
        return None
    return relative_change(before.perplexity, after.perplexity)


def relative_change(before: Perplexity, after: Perplexity) -> tuple[float, float, float]:
    """after / before − 1, and its 95% interval by resampling texts in pairs (10,000 draws)."""
    import numpy as np

    tokens = np.array(before.tokens)
    change = np.array(after.nats) - np.array(before.nats)
    draws = np.random.default_rng(0).integers(0, len(tokens), size=(10_000, len(tokens)))
    resampled = np.expm1(change[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return after.value / before.value - 1.0, float(low), float(high)


def perplexity_interval(measured: Perplexity) -> tuple[float, float]:
    """95% interval of a perplexity by resampling texts (10,000 draws)."""
    import numpy as np

    tokens, nats = np.array(measured.tokens), np.array(measured.nats)
    draws = np.random.default_rng(0).integers(0, len(tokens), size=(10_000, len(tokens)))
    # Beyond 700 nats a token, which no float can hold as a perplexity, the bound is infinite.
    with np.errstate(over="ignore"):
        resampled = np.exp(nats[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def metric_values(measured: Measurement) -> dict[str, float]:
    """The bare figures: rates as fractions, perplexity as it is."""
    values = {metric: rate.rate for metric, rate in measured.rates.items()}
    if measured.perplexity is not None:
        values["perplexity"] = measured.perplexity.value
    return values


def rate_json(rate: Rate) -> dict[str, Any]:
    """A rate with its interval for a report."""
    return {"value": rate.rate, "n": rate.n, "k": rate.k, "interval": [rate.low, rate.high]}


def difference_json(difference: PairedDifference) -> dict[str, Any]:
    """A paired difference for a report."""
    return {
        "difference": difference.difference,
        "interval": [difference.low, difference.high],
        "p": difference.p,
        "gained": difference.gained,
        "lost": difference.lost,
        "n": difference.n,
    }


def _labels(rows: Sequence[Completion]) -> list[str]:
    return sorted({str(row.label) for row in rows})
