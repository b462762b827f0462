"""Suites on a loaded model: replies, their labels, rates with intervals, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from snt import corpora
from snt.corpora import Corpus
from snt.errors import RequestError, unknown_name
from snt.evaluation.agreement import Agreement, agreement
from snt.evaluation.completions import Completion, rejudge
from snt.evaluation.judges import (
    DEFAULT_JUDGES,
    Judge,
    counts_against,
    get_judge,
    is_refused,
    judge_plugin,
)
from snt.evaluation.perplexity import Perplexity, perplexity
from snt.evaluation.statistics import PairedDifference, Rate, paired_difference
from snt.generation import replies
from snt.opening import OpenModel
from snt.progress import Progress, Silence

# Metric -> the suite that it belongs to and the corpus that it is measured on by default.
METRICS: Mapping[str, tuple[str, str]] = {
    "non_refusal": ("safety", "harmful/eval"),
    "harmless_refusal": ("over-refusal", "harmless/eval"),
    "over_refusal": ("over-refusal", "lookalike/eval"),
    "perplexity": ("capability", "prose/eval"),
}
SUITES = ("safety", "over-refusal", "capability")
RATES = tuple(metric for metric in METRICS if metric != "perplexity")
RATE_SUITES = tuple((metric, METRICS[metric][0]) for metric in RATES)
NEW_TOKENS = 48


@dataclass(frozen=True)
class Settings:
    """What is measured and how. `corpora` may replace the corpus of a metric.

    The first of `judges` is the one whose labels count; the others are reported beside it.
    """

    suites: tuple[str, ...] = SUITES
    judges: tuple[str, ...] = DEFAULT_JUDGES
    new_tokens: int = NEW_TOKENS
    batch_size: int = 64
    limit: int | None = None
    corpora: Mapping[str, str] = field(default_factory=dict)

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
        self._check_judges()
        return {
            metric: corpora.load(self.corpora.get(metric, default), offline=offline).first(
                self.limit
            )
            for metric, (suite, default) in METRICS.items()
            if suite in self.suites
        }

    def _check_judges(self) -> None:
        """Raises UnknownNameError, and RequestError for a judge of harm on harmless prompts."""
        if not self.judges:
            raise RequestError("no judge was given; `snt judges` lists them")
        plugins = [judge_plugin(name) for name in self.judges]
        asked = {suite for _, suite in RATE_SUITES if suite in self.suites}
        if plugins[0].scores_harm and asked - {"safety"}:
            raise RequestError(
                f"judge {self.judges[0]!r} says whether harm was done, which no answer to a "
                "harmless prompt does; give --suite safety, or another judge before it: --judge "
                f"refusal --judge {self.judges[0]}"
            )

    def generation(self) -> dict[str, Any]:
        """What the replies depend on beside model and prompt."""
        return {"max_new_tokens": self.new_tokens, "sampling": "greedy"}


@dataclass(frozen=True)
class Measurement:
    """What one model did. `completions` are labelled and in the order of suites and prompts."""

    judges: tuple[str, ...]
    corpora: Mapping[str, Mapping[str, Any]]
    completions: tuple[Completion, ...]
    perplexity: Perplexity | None
    reused: int = 0

    def outcomes(self, metric: str, judge: str | None = None) -> list[bool]:
        """Per prompt, whether it counts towards the metric's rate, by the first judge or `judge`.

        Empty for a judge that was not asked about the metric.
        """
        name = judge or self.judges[0]
        rows = [row for row in self.completions if row.suite == metric]
        labels = [row.labels[name] for row in rows if name in row.labels]
        if metric != "non_refusal":
            return [is_refused(label) for label in labels]
        harm = judge_plugin(name).scores_harm
        return [counts_against(label, harm) for label in labels]

    def agreement(self, metric: str | None = None) -> Agreement | None:
        """Of the first two judges on a metric, or on all; None where not both were asked."""
        if len(self.judges) < 2:
            return None
        pairs: list[tuple[bool, bool]] = []
        for one in RATES if metric is None else (metric,):
            first, second = (self.outcomes(one, name) for name in self.judges[:2])
            # One meaning for all metrics: half of them turned round would look like agreement
            # beyond chance.
            turn = one == "non_refusal"
            pairs += ((a != turn, b != turn) for a, b in zip(first, second, strict=False))
        return agreement([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None

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
                "judge": self.judges[0],
                "judges": self._judges_json(metric),
                "labels": {name: sum(row.label == name for row in rows) for name in _labels(rows)},
                "corpus": dict(self.corpora[metric]),
            }
            both = self.agreement(metric)
            if both is not None:
                document[metric]["agreement"] = {**both.as_json(), "judges": self.judges[:2]}
        if self.perplexity is not None:
            document["perplexity"] = {
                "value": self.perplexity.value,
                "n": len(self.perplexity.tokens),
                "tokens": sum(self.perplexity.tokens),
                "suite": "capability",
                "corpus": dict(self.corpora["perplexity"]),
            }
        return document

    def _judges_json(self, metric: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.judges:
            outcomes, plugin = self.outcomes(metric, name), judge_plugin(name)
            if outcomes:
                found[name] = {
                    **rate_json(Rate.of_outcomes(outcomes)),
                    "heuristic": plugin.heuristic,
                    # Only a judge of harm gives a harmful score.
                    "rate": "harmful score" if plugin.scores_harm else metric,
                }
        return found


def measure(
    opened: OpenModel,
    settings: Settings,
    progress: Progress | None = None,
    reuse: Sequence[Completion] = (),
) -> Measurement:
    """Run the chosen suites. Replies in `reuse` that were made the same way are not made again."""
    progress = progress or Silence()
    chosen = settings.chosen(opened.offline)
    judges = [get_judge(name, opened, opened.offline) for name in settings.judges]
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
                opened.model, opened.chat, texts, settings.new_tokens, settings.batch_size, advance
            )
        known |= dict(zip(missing, new, strict=True))
    rows: list[Completion] = []
    for metric in chosen:
        replied = [
            Completion(text, known[metric, text], metric, number, made_by)
            for number, text in enumerate(chosen[metric].texts if metric in RATES else ())
        ]
        rows += rejudge(replied, *_judges_of(metric, judges))
    language = None
    if "perplexity" in chosen:
        texts = list(chosen["perplexity"].texts)
        with progress.task("perplexity", len(texts), "texts") as advance:
            language = perplexity(opened.model, opened.chat, texts, on_batch=advance)
    described = {metric: corpus.describe() for metric, corpus in chosen.items()}
    names = tuple(judge.name for judge in judges)
    return Measurement(names, described, tuple(rows), language, len(asked) - len(missing))


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


def _judges_of(metric: str, judges: Sequence[Judge]) -> list[Judge]:
    """The judges that can say something about a metric's prompts: of harm, only on harmful ones."""
    return [judge for judge in judges if metric == "non_refusal" or not judge.scores_harm]


def _labels(rows: Sequence[Completion]) -> list[str]:
    return sorted({str(row.label) for row in rows})
