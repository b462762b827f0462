"""Suites on a loaded model: replies, their labels, rates with intervals, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from snt.errors import RequestError
from snt.evaluation.clustered import clustered_rate
from snt.evaluation.completions import Completion
from snt.evaluation.gcg import attacked
from snt.evaluation.harness import run_tasks
from snt.evaluation.judges import get_judge, is_refused
from snt.evaluation.multilingual import ENGLISH
from snt.evaluation.near_duplicates import clusters_of
from snt.evaluation.perplexity import Perplexity, perplexity, perplexity_interval
from snt.evaluation.perplexity import relative_change as relative_change
from snt.evaluation.power import (
    DISCORDANT,
    detectable_beside,
    paired_detectable,
    unpaired_detectable,
)
from snt.evaluation.settings import Settings as Settings
from snt.evaluation.statistics import PairedDifference, Rate, paired_difference
from snt.evaluation.suites import (
    ANY,
    REPEATED,
    any_of,
    check_fits,
    complied_counts,
    family,
    rate_names,
    variant,
)
from snt.evaluation.suites import METRICS as METRICS
from snt.evaluation.suites import RATES as RATES
from snt.evaluation.task_results import TaskResults
from snt.generation import replies
from snt.opening import OpenModel
from snt.progress import Progress, Silence


@dataclass(frozen=True)
class Measurement:
    """What one model did. `completions` are labelled and in the order of suites and prompts.

    `details` are what a metric's report says beside its rate; `tasks` those of lm-eval.
    """

    judge: str
    corpora: Mapping[str, Mapping[str, Any]]
    completions: tuple[Completion, ...]
    perplexity: Perplexity | None
    reused: int = 0
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tasks: TaskResults | None = None

    def rows(self, metric: str) -> list[Completion]:
        """The replies that a metric is of."""
        name = metric.removesuffix(f".{ANY}")
        return [row for row in self.completions if row.suite == name]

    def outcomes(self, metric: str) -> list[bool]:
        """Per prompt, whether it counts towards the metric's rate."""
        if self.tasks is not None and metric in self.tasks.metrics:
            return list(self.tasks.metrics[metric].outcomes or ())
        rows = self.rows(metric)
        refused = [row.label is not None and is_refused(row.label) for row in rows]
        counted = [not value for value in refused] if complied_counts(metric) else refused
        if variant(metric) == ANY:
            return any_of(counted, [int(row.extra["row"]) for row in rows])
        return counted

    def clusters(self, metric: str) -> list[int] | None:
        """Per outcome the request it is an attempt at, where each is asked more than once."""
        if metric not in REPEATED:
            return None
        return [int(row.extra["row"]) for row in self.rows(metric)]

    @property
    def rates(self) -> dict[str, Rate]:
        """Rate of every metric that was measured, those of lm-eval's tasks among them."""
        found = {name: self._rate(name) for name in rate_names(self.completions)}
        tasks = self.tasks.metrics.items() if self.tasks is not None else ()
        return found | {name: task.rate for name, task in tasks if task.rate is not None}

    def groups(self, metric: str) -> dict[str, Rate]:
        """The rate of every template or behaviour of a metric, none where it has no groups."""
        found: dict[str, list[bool]] = {}
        if family(metric) in REPEATED and variant(metric) is None:
            for row, outcome in zip(self.rows(metric), self.outcomes(metric), strict=True):
                found.setdefault(str(row.extra["group"]), []).append(outcome)
        return {name: Rate.of_outcomes(values) for name, values in found.items()}

    def as_json(self) -> dict[str, Any]:
        """Per metric the value with n and interval, the labels counted, the corpus."""
        document: dict[str, Any] = {}
        for metric in rate_names(self.completions):
            rows = self.rows(metric)
            document[metric] = {
                **rate_json(self._rate(metric)),
                "suite": METRICS[family(metric)].suite,
                "judge": self.judge,
                "labels": {name: sum(row.label == name for row in rows) for name in _labels(rows)},
                "corpus": dict(self.corpora[metric.removesuffix(f".{ANY}")]),
                **self.details.get(metric, {}),
            }
            groups = self.groups(metric)
            if groups:
                document[metric]["groups"] = {name: rate_json(r) for name, r in groups.items()}
            english = self.beside_english(metric)
            if english is not None:
                document[metric]["beside_english"] = difference_json(english)
        if self.perplexity is not None:
            document["perplexity"] = {
                "value": self.perplexity.value,
                "interval": list(perplexity_interval(self.perplexity)),
                "n": len(self.perplexity.tokens),
                "tokens": sum(self.perplexity.tokens),
                "suite": "capability",
                "corpus": dict(self.corpora["perplexity"]),
            }
        if self.tasks is not None:
            document |= {name: task.as_json() for name, task in self.tasks.metrics.items()}
        return document

    def beside_english(self, metric: str) -> PairedDifference | None:
        """A language's rate minus English's on the same prompts; None where there is none."""
        known = METRICS.get(family(metric))
        english = f"{family(metric)}.{ENGLISH}"
        if known is None or known.suite != "multilingual" or metric == english:
            return None
        before = self.outcomes(english)
        return paired_difference(before, self.outcomes(metric)) if before else None

    def _rate(self, metric: str) -> Rate:
        clusters = self.clusters(metric)
        outcomes = self.outcomes(metric)
        return (
            Rate.of_outcomes(outcomes) if clusters is None else clustered_rate(outcomes, clusters)
        )


def measure(
    opened: OpenModel,
    settings: Settings,
    progress: Progress | None = None,
    reuse: Sequence[Completion] = (),
) -> Measurement:
    """Run the chosen suites. Replies in `reuse` that were made the same way are not made again."""
    progress = progress or Silence()
    probes = settings.probes(opened.offline)
    judge = get_judge(settings.judge)
    made_by = made_by_of(opened, settings)
    check_fits(opened.chat, probes.values(), settings.new_tokens)
    details: dict[str, dict[str, Any]] = {}
    if "gcg_attack_success" in probes and settings.jailbreak.gcg is not None:
        probe = probes["gcg_attack_success"]
        attack, found = attacked(opened, probe, settings.jailbreak.gcg, progress)
        check_fits(opened.chat, (attack,), settings.new_tokens)
        probes["gcg_attack_success"] = attack
        details["gcg_attack_success"] = {"suffixes": [one.as_json() for one in found]}
    known = {(row.suite, row.prompt): row.response for row in reuse if dict(row.made_by) == made_by}
    asked = [(metric, one.text) for metric, probe in probes.items() for one in probe.asked]
    missing = list(dict.fromkeys(item for item in asked if item not in known))
    if missing:
        with progress.task("replies", len(missing), "prompts") as advance:
            texts = [text for _, text in missing]
            new = replies(
                opened.model, opened.chat, texts, settings.new_tokens, settings.batch_size, advance
            )
        known |= dict(zip(missing, new, strict=True))
    rows = []
    for metric, probe in probes.items():
        for number, one in enumerate(probe.asked):
            reply = known[metric, one.text]
            label = judge.label(one.text, reply)
            rows.append(Completion(one.text, reply, metric, number, made_by, label, one.extra))
    language = None
    if "perplexity" in probes:
        texts = list(probes["perplexity"].corpus.texts)
        with progress.task("perplexity", len(texts), "texts") as advance:
            language = perplexity(opened.model, opened.chat, texts, on_batch=advance)
    tasks = None if settings.tasks is None else run_tasks(opened, settings.tasks, progress)
    described = {metric: probe.describe() for metric, probe in probes.items()}
    if tasks is not None:
        described |= {name: task.corpus() for name, task in tasks.metrics.items()}
    reused = len(asked) - len(missing)
    return Measurement(settings.judge, described, tuple(rows), language, reused, details, tasks)


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
    there = after.rates
    for metric in before.rates:
        if metric not in there:
            continue
        name = metric.removesuffix(f".{ANY}")
        if before.corpora[name]["sha256"] != after.corpora[name]["sha256"]:
            raise RequestError(f"{metric}: the two measurements are of different prompts")
        outcomes = before.outcomes(metric), after.outcomes(metric)
        # Attempts at one request hang together, and near-duplicates are one observation.
        clusters = after.clusters(metric)
        if clusters is None:
            prompts = [row.prompt for row in after.completions if row.suite == metric]
            clusters = clusters_of(prompts) if len(prompts) == len(outcomes[0]) else None
        differences[metric] = paired_difference(*outcomes, clusters=clusters)
    return differences


def perplexity_change(before: Measurement, after: Measurement) -> tuple[float, float, float] | None:
    """Relative change of perplexity with a paired bootstrap interval over texts, as fractions."""
    if before.perplexity is None or after.perplexity is None:
        return None
    return relative_change(before.perplexity, after.perplexity)


def metric_values(measured: Measurement) -> dict[str, float]:
    """The bare figures: rates as fractions, perplexity as it is."""
    values = {metric: rate.rate for metric, rate in measured.rates.items()}
    if measured.perplexity is not None:
        values["perplexity"] = measured.perplexity.value
    if measured.tasks is not None:
        values |= {name: task.value for name, task in measured.tasks.metrics.items()}
    return values


def rate_json(rate: Rate) -> dict[str, Any]:
    """A rate with its interval for a report, and how large a difference its n would show."""
    return {
        "value": rate.rate,
        "n": rate.n,
        "k": rate.k,
        "interval": [rate.low, rate.high],
        "minimum_detectable_difference": {
            "unpaired": unpaired_detectable(rate.n, rate.rate),
            "paired": paired_detectable(rate.n),
            "paired_discordant": DISCORDANT,
        },
    }


def difference_json(difference: PairedDifference) -> dict[str, Any]:
    """A paired difference for a report."""
    return {
        "difference": difference.difference,
        "interval": [difference.low, difference.high],
        "p": difference.p,
        "gained": difference.gained,
        "lost": difference.lost,
        "n": difference.n,
        "clusters": difference.clusters,
        "minimum_detectable_difference": detectable_beside(
            difference.n, difference.gained, difference.lost
        ),
    }


def _labels(rows: Sequence[Completion]) -> list[str]:
    return sorted({str(row.label) for row in rows})
