"""What a comparison of robust tunings found: every stage, paired differences, what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from snt.errors import FormatError
from snt.evaluation.perplexity import Perplexity
from snt.evaluation.statistics import PairedDifference, Rate, paired_difference
from snt.evaluation.suites import RATES
from snt.robust.arms import STAGES, TASK, Arm, Job, job_at

TASK_CORRECT = "task"
METRICS = (*RATES, TASK_CORRECT)
SEED_RESAMPLES = 2_000


@dataclass(frozen=True)
class StageResult:
    """One measured model. `outcomes` per metric and prompt, in corpus order, whether it counts.

    `language`: perplexity of plain text. `responses`: of the task's right answers. `training`: what
    was trained to get here, as its report says.
    """

    outcomes: Mapping[str, tuple[bool, ...]]
    language: Perplexity | None
    responses: Perplexity
    training: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def rate(self, metric: str) -> Rate | None:
        """Share of a metric's prompts that count, with its Wilson interval."""
        values = self.outcomes.get(metric)
        return Rate.of_outcomes(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """Outcomes as 0 and 1, so that any other statistic can be made of them."""
        return {
            "outcomes": {name: [int(v) for v in values] for name, values in self.outcomes.items()},
            "language": None if self.language is None else asdict(self.language),
            "responses": asdict(self.responses),
            "training": dict(self.training),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> StageResult:
        """Read it back. Raises FormatError."""
        try:
            language = row["language"]
            return cls(
                {name: tuple(map(bool, values)) for name, values in row["outcomes"].items()},
                None if language is None else _perplexity(language),
                _perplexity(row["responses"]),
                dict(row["training"]),
                float(row["seconds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"a finished stage is damaged: {error!r}") from error


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: its mean and 95% interval, and the figure of each seed."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """As rates stand in reports."""
        return {
            "value": self.mean,
            "interval": [self.low, self.high],
            "by_seed": list(self.by_seed),
        }


@dataclass(frozen=True)
class Comparison:
    """One arm against another on a metric after the task, on the same prompts.

    by_seed: exact McNemar and a bootstrap of each seed. difference: the mean over seeds, with an
    interval over prompts, and over seeds where there are several.
    """

    arm: str
    reference: str
    metric: str
    by_seed: tuple[PairedDifference, ...]
    difference: Spread

    @property
    def null(self) -> bool:
        """Whether the arms are not told apart: McNemar at 5% for one seed, else the interval."""
        if len(self.by_seed) == 1:
            return self.by_seed[0].p >= 0.05
        return self.difference.low <= 0.0 <= self.difference.high


@dataclass(frozen=True)
class Kept:
    """Of the prompts that an arm's safety tuning made refused, how many still are after the task.

    `rate` is over all seeds; None where the tuning gave no refusal.
    """

    arm: str
    rate: Rate | None
    by_seed: tuple[tuple[int, int], ...]


Results = Mapping[Job, StageResult]


def stage_spread(
    results: Results, arm: Arm, stage: str, seeds: Sequence[int], metric: str
) -> Spread | None:
    """A metric of an arm at a stage over seeds; None where it was not measured."""
    jobs = list(dict.fromkeys(job_at(arm, stage, seed) for seed in seeds))
    found = [results[job].outcomes.get(metric) for job in jobs]
    values = [one for one in found if one]
    return over_seeds(values) if values else None


def over_seeds(outcomes: Sequence[Sequence[float]], seed: int = 0) -> Spread:
    """Mean of (seeds, prompts) outcomes. One seed of a rate: Wilson; several: bootstrap of both."""
    import numpy as np

    values = np.array(outcomes, dtype=float)
    by_seed = tuple(float(mean) for mean in values.mean(axis=1))
    if len(values) == 1 and set(values[0].tolist()) <= {0.0, 1.0}:
        rate = Rate.of_outcomes([bool(value) for value in values[0]])
        return Spread(rate.rate, rate.low, rate.high, by_seed)
    draw = np.random.default_rng(seed)
    seeds, prompts = values.shape
    means = np.empty(SEED_RESAMPLES)
    for number in range(SEED_RESAMPLES):
        chosen = values[draw.integers(0, seeds, seeds)]
        means[number] = chosen[:, draw.integers(0, prompts, prompts)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Spread(float(values.mean()), float(low), float(high), by_seed)


def compare_arms(
    results: Results, arms: Sequence[Arm], seeds: Sequence[int], references: Sequence[str]
) -> list[Comparison]:
    """Every arm against every reference among the arms after the task, no pair twice."""
    found: list[Comparison] = []
    done: set[frozenset[str]] = set()
    for reference in (arm for name in references for arm in arms if arm.name == name):
        for arm in arms:
            pair = frozenset((arm.name, reference.name))
            if arm == reference or pair in done:
                continue
            done.add(pair)
            for metric in METRICS:
                one = _comparison(results, arm, reference, seeds, metric)
                if one is not None:
                    found.append(one)
    return found


def kept_refusals(results: Results, arm: Arm, seeds: Sequence[int]) -> Kept:
    """What the fine-tune left of the refusals that the arm's safety tuning gave."""
    counts = []
    for seed in seeds:
        before, tuned, after = (
            results[job_at(arm, stage, seed)].outcomes["non_refusal"] for stage in STAGES
        )
        given = [n for n, (b, t) in enumerate(zip(before, tuned, strict=True)) if b and not t]
        counts.append((sum(not after[n] for n in given), len(given)))
    total = sum(n for _, n in counts)
    rate = Rate.of(sum(k for k, _ in counts), total) if total else None
    return Kept(arm.name, rate, tuple(counts))


def _comparison(
    results: Results, arm: Arm, reference: Arm, seeds: Sequence[int], metric: str
) -> Comparison | None:
    pairs = []
    for seed in seeds:
        mine, theirs = (
            results[Job(TASK, one.name, seed)].outcomes.get(metric) for one in (arm, reference)
        )
        if not mine or not theirs:
            return None
        pairs.append((theirs, mine))
    by_seed = tuple(paired_difference(theirs, mine) for theirs, mine in pairs)
    if len(by_seed) == 1:
        one = by_seed[0]
        spread = Spread(one.difference, one.low, one.high, (one.difference,))
    else:
        spread = over_seeds(
            [[int(m) - int(t) for t, m in zip(*pair, strict=True)] for pair in pairs]
        )
    return Comparison(arm.name, reference.name, metric, by_seed, spread)


def _perplexity(row: Mapping[str, Any]) -> Perplexity:
    return Perplexity(tuple(map(float, row["nats"])), tuple(map(int, row["tokens"])))
