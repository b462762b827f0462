"""The guard of a tuning: safety and over-refusal measured along the way, and the best point kept.

Source: this project's. A tuning that goes on past its best refuses everything; the curve shows
where it stood, and the limit says from where on it must not go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from snt.backend import LoadedModel
from snt.chat import Chat
from snt.corpora import Corpus
from snt.errors import RequestError
from snt.evaluation.judges import DEFAULT_JUDGE, get_judge, is_refused
from snt.generation import replies

# Held out from what a tuning learns from and from what it is measured on in the end.
HARMFUL, LOOKALIKE = "harmful/detect", "lookalike/detect"
PROMPTS = 40  # of each corpus
NEW_TOKENS = 16  # a refusal shows in its opening
EVERY = 50


@dataclass(frozen=True)
class Point:
    """Where a run stood after `step` steps: shares, as fractions, of short replies."""

    step: int
    non_refusal: float
    over_refusal: float

    def as_json(self) -> dict[str, float]:
        """As it stands in report.json."""
        return asdict(self)


@dataclass(frozen=True)
class Guard:
    """Measured every `every` steps, before the first and after the last.

    `measure` returns (harmful requests not refused, look-alikes refused), of the model as it is at
    the moment. Above `limit` of the latter the run stops; None only draws the curve.
    """

    measure: Callable[[], tuple[float, float]]
    every: int = EVERY
    limit: float | None = None
    corpora: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RequestError(f"a guard every {self.every} steps; give at least 1")
        if self.limit is not None and not 0.0 <= self.limit <= 1.0:
            raise RequestError(f"an over-refusal of at most {self.limit}: give a share, 0 to 1")

    def describe(self) -> dict[str, Any]:
        """What it measures and when, as it stands in a patch."""
        return {
            "every": self.every,
            "max_over_refusal": self.limit,
            "prompts": PROMPTS,
            "new_tokens": NEW_TOKENS,
            "corpora": [dict(corpus) for corpus in self.corpora],
        }

    def due(self, step: int, steps: int) -> bool:
        """Whether the curve has a point at `step` of `steps`."""
        return step % self.every == 0 or step == steps

    def crossed(self, point: Point) -> bool:
        """Whether the run must stop here."""
        return self.limit is not None and point.step > 0 and point.over_refusal > self.limit

    def better(self, point: Point, best: Point | None) -> bool:
        """Whether a point within the limit is to be kept: fewer harmful requests answered, then
        fewer look-alikes refused, then the later one."""
        if self.limit is None or point.step == 0 or self.crossed(point):
            return False
        return best is None or (point.non_refusal, point.over_refusal) <= (
            best.non_refusal,
            best.over_refusal,
        )


def evenly(corpus: Corpus, count: int = PROMPTS) -> list[str]:
    """At most `count` texts from the whole length of a corpus, for corpora come sorted."""
    size = len(corpus.texts)
    taken = min(count, size)
    return [corpus.texts[n * size // taken] for n in range(taken)]


def guard_of(
    model: LoadedModel,
    chat: Chat,
    harmful: Corpus,
    lookalike: Corpus,
    every: int = EVERY,
    limit: float | None = None,
) -> Guard:
    """A guard that reads the beginnings of greedy replies, by the default judge."""
    judge = get_judge(DEFAULT_JUDGE)
    asked = evenly(harmful)
    prompts = [*asked, *evenly(lookalike)]

    def measure() -> tuple[float, float]:
        said = replies(model, chat, prompts, NEW_TOKENS, batch_size=40)
        refused = [is_refused(judge.label(*one)) for one in zip(prompts, said, strict=True)]
        first, second = refused[: len(asked)], refused[len(asked) :]
        return 1 - sum(first) / len(first), sum(second) / len(second)

    return Guard(measure, every, limit, (harmful.describe(), lookalike.describe()))
