"""What an evaluation measures and how: suites, corpora, tasks and attacks, checked before a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from snt import corpora
from snt.corpora import Corpus
from snt.errors import RequestError
from snt.evaluation.harness import TaskSettings
from snt.evaluation.jailbreaks import JailbreakSettings, jailbreak_probes
from snt.evaluation.judges import DEFAULT_JUDGES, judge_plugin
from snt.evaluation.multilingual import language_probes
from snt.evaluation.suites import (
    DEFAULT_SUITES,
    LEFT_OUT,
    METRICS,
    Probe,
    check_suites,
    limited,
)
from snt.generation import Drawing

NEW_TOKENS = 48
_NO_ATTACK = JailbreakSettings()


@dataclass(frozen=True)
class Settings:
    """What is measured and how. `corpora` may replace the corpus of a metric, or leave the metric
    out with "none"; `languages` are those of the multilingual suite, empty for its own. The first
    of `judges` is the one whose labels count; the others are reported beside it. `batch_size`
    None: as many replies at once as the memory holds. `drawing` None: greedy replies."""

    suites: tuple[str, ...] = DEFAULT_SUITES
    judges: tuple[str, ...] = DEFAULT_JUDGES
    new_tokens: int = NEW_TOKENS
    batch_size: int | None = None
    limit: int | None = None
    corpora: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    tasks: TaskSettings | None = None
    jailbreak: JailbreakSettings = field(default_factory=JailbreakSettings)
    drawing: Drawing | None = None

    def chosen(self, offline: bool = False) -> dict[str, Corpus]:
        """The corpus of every metric of the chosen suites. Raises as `probes` does."""
        return {metric: probe.corpus for metric, probe in self.probes(offline).items()}

    def probes(self, offline: bool = False) -> dict[str, Probe]:
        """Every metric of the chosen suites, ready to be measured.

        Raises UnknownNameError for a suite or metric, RequestError and children for a corpus, file
        or number that cannot be served, UnavailableError for a library that is missing.
        """
        check_suites(self.suites, self.corpora)
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"a limit of {self.limit} prompts; give at least 1")
        if self.new_tokens < 1:
            raise RequestError(f"{self.new_tokens} new tokens; give at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise RequestError(f"a batch of {self.batch_size} prompts; give at least 1")
        if self.drawing is not None:
            self.drawing.check()
        self._check_judges()
        self._check_options()
        found: list[Probe] = []
        for name, metric in METRICS.items():
            if metric.suite not in self.suites or metric.suite == "jailbreak":
                continue
            reference = self.corpora.get(name, str(metric.corpus))
            if reference == LEFT_OUT:
                continue
            if metric.suite == "multilingual":
                found += language_probes(name, reference, self.languages, offline)
            else:
                found.append(Probe.plain(name, corpora.load(reference, offline=offline)))
        if "jailbreak" in self.suites:
            found += jailbreak_probes(self.jailbreak, self.corpora, offline)
        if not found and self.tasks is None:
            raise RequestError("every metric was left out; nothing would be measured")
        return {probe.metric: limited(probe, self.limit) for probe in found}

    def for_tuning(self) -> Settings:
        """What a tuning measures before and after: all but tasks and suffix searches.

        An evaluation takes up a tuning's replies; those two it would have to do once more.
        """
        jailbreak = replace(self.jailbreak, gcg=None)
        kept = tuple(
            suite for suite in self.suites if suite != "jailbreak" or jailbreak != _NO_ATTACK
        )
        return replace(self, suites=kept or DEFAULT_SUITES, tasks=None, jailbreak=jailbreak)

    def _check_judges(self) -> None:
        """Raises UnknownNameError, and RequestError for a judge of harm on harmless prompts."""
        if not self.judges:
            raise RequestError("no judge was given; `snt judges` lists them")
        plugins = [judge_plugin(name) for name in self.judges]
        harmless = {
            metric.suite
            for name, metric in METRICS.items()
            if metric.counts == "refusal" and self.corpora.get(name) != LEFT_OUT
        }
        if plugins[0].scores_harm and harmless & set(self.suites):
            raise RequestError(
                f"judge {self.judges[0]!r} says whether harm was done, which no answer to a "
                "harmless prompt does; give --suite safety, or another judge before it: --judge "
                f"refusal --judge {self.judges[0]}"
            )

    def _check_options(self) -> None:
        """Raises RequestError for what belongs to a suite that was not chosen."""
        for suite, given, option in (
            ("capability", self.tasks is not None, "--tasks"),
            ("multilingual", bool(self.languages), "--languages"),
            ("jailbreak", self.jailbreak != _NO_ATTACK, "--templates, --test-cases or --gcg-steps"),
        ):
            if given and suite not in self.suites:
                raise RequestError(f"{option}: add {suite} to --suite {','.join(self.suites)}")
        if self.tasks is not None:
            self.tasks.check()

    def generation(self) -> dict[str, Any]:
        """What the replies depend on beside model and prompt."""
        sampling = "greedy" if self.drawing is None else self.drawing.as_json()
        return {"max_new_tokens": self.new_tokens, "sampling": sampling}
