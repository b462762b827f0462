"""Suites on a loaded model: replies, their labels, rates with intervals, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from snt.evaluation.agreement import Agreement, agreement
from snt.evaluation.clustered import clustered_rate
from snt.evaluation.completions import Completion, rejudge
from snt.evaluation.gcg import attacked
from snt.evaluation.harness import run_tasks
from snt.evaluation.judges import Judge, counts_against, get_judge, is_refused, judge_plugin
from snt.evaluation.multilingual import ENGLISH
from snt.evaluation.perplexity import Perplexity, perplexity, perplexity_interval
from snt.evaluation.settings import Settings
from snt.evaluation.statistics import PairedDifference, Rate, paired_difference
from snt.evaluation.statistics_json import difference_json, rate_json
from snt.evaluation.suites import (
    ANY,
    METRICS,
    REPEATED,
    any_of,
    check_fits,
    complied_counts,
    family,
    rate_names,
    variant,
)
from snt.evaluation.task_results import TaskResults
from snt.generation import replies
from snt.opening import OpenModel
from snt.progress import Progress, Silence
from snt.unfinished_replies import UnfinishedReplies


@dataclass(frozen=True)
class Measurement:
    """What one model did. `completions` are labelled and in the order of suites and prompts.

    `details` are what a metric's report says beside its rate; `tasks` those of lm-eval.
    """

    judges: tuple[str, ...]
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

    def outcomes(self, metric: str, judge: str | None = None) -> list[bool]:
        """Per prompt, whether it counts towards the metric's rate, by the first judge or `judge`.

        Empty for a judge that was not asked about the metric.
        """
        if self.tasks is not None and metric in self.tasks.metrics:
            return list(self.tasks.metrics[metric].outcomes or ())
        name = judge or self.judges[0]
        rows = [row for row in self.rows(metric) if name in row.labels]
        labels = [row.labels[name] for row in rows]
        if complied_counts(metric):
            harm = judge_plugin(name).scores_harm
            counted = [counts_against(label, harm) for label in labels]
        else:
            counted = [is_refused(label) for label in labels]
        if variant(metric) == ANY:
            return any_of(counted, [int(row.extra["row"]) for row in rows])
        return counted

    def agreement(self, metric: str | None = None) -> Agreement | None:
        """Of the first two judges on a metric, or on all; None where not both were asked."""
        if len(self.judges) < 2:
            return None
        pairs: list[tuple[bool, bool]] = []
        names = [name for name in rate_names(self.completions) if variant(name) != ANY]
        for one in names if metric is None else (metric,):
            first, second = (self.outcomes(one, name) for name in self.judges[:2])
            # One meaning for all metrics: half of them turned round would look like agreement
            # beyond chance.
            turn = complied_counts(one)
            pairs += ((a != turn, b != turn) for a, b in zip(first, second, strict=False))
        return agreement([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None

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
                "judge": self.judges[0],
                "judges": self._judges_json(metric),
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
            both = self.agreement(metric)
            if both is not None:
                document[metric]["agreement"] = {**both.as_json(), "judges": self.judges[:2]}
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

    def _rate(self, metric: str, judge: str | None = None) -> Rate:
        clusters = self.clusters(metric)
        outcomes = self.outcomes(metric, judge)
        return (
            Rate.of_outcomes(outcomes) if clusters is None else clustered_rate(outcomes, clusters)
        )

    def _judges_json(self, metric: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.judges:
            plugin = judge_plugin(name)
            if self.outcomes(metric, name):
                found[name] = {
                    **rate_json(self._rate(metric, name)),
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
    unfinished: UnfinishedReplies | None = None,
) -> Measurement:
    """Run the chosen suites. Replies in `reuse` that were made the same way are not made again.

    `unfinished` keeps the new ones as they come, for a run that goes on where this one stopped.
    """
    progress = progress or Silence()
    probes = settings.probes(opened.offline)
    judges = [get_judge(name, opened, opened.offline) for name in settings.judges]
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
                *(opened.model, opened.chat, texts),
                *(settings.new_tokens, settings.batch_size, advance),
                drawing=settings.drawing,
                unfinished=unfinished,
                settings=made_by,
                say=progress.say,
            )
        known |= dict(zip(missing, new, strict=True))
    rows: list[Completion] = []
    for metric, probe in probes.items():
        replied = [
            Completion(one.text, known[metric, one.text], metric, number, made_by, extra=one.extra)
            for number, one in enumerate(probe.asked)
        ]
        rows += rejudge(replied, *_judges_of(metric, judges))
    language = None
    if "perplexity" in probes:
        texts = list(probes["perplexity"].corpus.texts)
        with progress.task("perplexity", len(texts), "texts") as advance:
            language = perplexity(
                opened.model, opened.chat, texts, on_batch=advance, say=progress.say
            )
    tasks = None if settings.tasks is None else run_tasks(opened, settings.tasks, progress)
    described = {metric: probe.describe() for metric, probe in probes.items()}
    if tasks is not None:
        described |= {name: task.corpus() for name, task in tasks.metrics.items()}
    reused = len(asked) - len(missing)
    names = tuple(judge.name for judge in judges)
    return Measurement(names, described, tuple(rows), language, reused, details, tasks)


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


def _judges_of(metric: str, judges: Sequence[Judge]) -> list[Judge]:
    """The judges that can say something about a metric's prompts: of harm, only on harmful ones."""
    return [judge for judge in judges if complied_counts(metric) or not judge.scores_harm]


def _labels(rows: Sequence[Completion]) -> list[str]:
    return sorted({str(row.label) for row in rows})
