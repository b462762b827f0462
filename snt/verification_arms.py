"""The arms of a verification: what is removed in each, and what the model then does."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from snt.ablation import deactivated
from snt.corpora import Corpus
from snt.errors import RequestError, RunFailure
from snt.evaluation.judges import DEFAULT_JUDGE
from snt.evaluation.measurement import Measurement, measure
from snt.evaluation.perplexity import Perplexity
from snt.evaluation.refusal_odds import OPENINGS, OpeningTree, refusal_log_odds
from snt.evaluation.settings import NEW_TOKENS, Settings
from snt.evaluation.verdict import FEWEST_PROMPTS, ArmChange, changes
from snt.masks import NeuronMask
from snt.matched_masks import foundation_like, magnitude_like
from snt.opening import OpenModel
from snt.progress import Progress
from snt.random_masks import random_like
from snt.scores import Scores

FEWEST_DRAWS = 5
# Metric of the suites -> what its prompts are called beside log-odds.
PROMPTS: Mapping[str, str] = {
    "non_refusal": "harmful",
    "over_refusal": "lookalike",
    "harmless_refusal": "harmless",
}


@dataclass(frozen=True)
class VerifySettings:
    """What a verification measures. `limit` takes the first prompts and texts of each corpus;
    `corpora` may replace the corpus of a metric, and `openings` the refusals whose odds are read.
    """

    draws: int = FEWEST_DRAWS
    limit: int | None = None
    new_tokens: int = NEW_TOKENS
    batch_size: int | None = None
    judge: str = DEFAULT_JUDGE
    corpora: Mapping[str, str] = field(default_factory=dict)
    openings: tuple[str, ...] = OPENINGS

    def check(self, offline: bool = False) -> dict[str, Corpus]:
        """The held-out corpora by metric. Raises RequestError for what cannot give a verdict."""
        if self.draws < FEWEST_DRAWS:
            raise RequestError(
                f"{self.draws} random draws; a verdict needs at least {FEWEST_DRAWS}: give --draws"
            )
        chosen = self.suites().chosen(offline)
        for metric in ("non_refusal", "harmless_refusal"):
            count = len(chosen[metric].texts)
            if count < FEWEST_PROMPTS:
                raise RequestError(
                    f"{count} prompts of {chosen[metric].name}; a verdict needs at least "
                    f"{FEWEST_PROMPTS}: raise --verify-limit or give a longer corpus"
                )
        return chosen

    def check_held_out(self, detected_on: Sequence[Corpus], offline: bool = False) -> None:
        """Raises RequestError as `check` does, and for prompts that the detection saw."""
        seen = {text for corpus in detected_on for text in corpus.texts}
        for corpus in self.check(offline).values():
            shared = sum(text in seen for text in corpus.texts)
            if shared:
                raise RequestError(
                    f"{shared} of {len(corpus.texts)} texts of {corpus.name} are among those to "
                    "detect on; a verdict needs held-out prompts: name others with --verify-corpus"
                )

    def suites(self) -> Settings:
        """The same, as the suites take it."""
        return Settings(
            judges=(self.judge,),
            new_tokens=self.new_tokens,
            batch_size=self.batch_size,
            limit=self.limit,
            corpora=self.corpora,
        )


@dataclass(frozen=True)
class Arm:
    """What was removed (None: nothing) and what the model then did.

    log_odds: refusal log-odds in nats per prompt, by `harmful`, `lookalike`, `harmless`.
    """

    name: str
    mask: NeuronMask | None
    measured: Measurement
    perplexity: Perplexity
    log_odds: Mapping[str, tuple[float, ...]]

    @property
    def refused(self) -> list[bool]:
        """Whether the reply to each harmful prompt refuses."""
        return [not complied for complied in self.measured.outcomes("non_refusal")]

    def change(self, before: Arm) -> ArmChange:
        """What this arm changed against the untouched model's."""
        moved = {
            name: changes(before.log_odds[name], values) for name, values in self.log_odds.items()
        }
        return ArmChange(
            self.name,
            moved["harmful"],
            moved["harmless"],
            self.refused,
            self.perplexity.value / before.perplexity.value - 1.0,
            drawn=self.name.startswith("random-"),
        )


def controls_of(
    mask: NeuronMask, scores: Scores, against: Scores, draws: int, seed: int
) -> list[tuple[str, NeuronMask | None]]:
    """Every arm's name and what it removes: nothing, the mask, random draws, matched neurons."""
    consistency = float(mask.provenance.get("consistency", 1.0))
    drawn = [(f"random-{n}", random_like(mask, draw_seed(seed, n))) for n in range(1, draws + 1)]
    return [
        ("none", None),
        ("mask", mask),
        *drawn,
        ("magnitude", magnitude_like(mask, scores)),
        ("foundation", foundation_like(mask, against, consistency)),
    ]


def draw_seed(seed: int, number: int) -> int:
    """A seed of its own for every random draw of every run. Raises RequestError below zero."""
    if seed < 0:
        raise RequestError(f"seed {seed} is negative; choose another")
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def measure_arm(
    opened: OpenModel,
    name: str,
    mask: NeuronMask | None,
    settings: VerifySettings,
    tree: OpeningTree,
    prompts: Mapping[str, Sequence[str]],
    progress: Progress,
) -> Arm:
    """Remove the neurons for a while and measure everything. Raises RunFailure for NaN."""
    with ExitStack() as stack:
        if mask is not None:
            stack.enter_context(deactivated(opened.model, mask))
            opened = replace(opened, deactivated=_digest(mask))
        measured = measure(opened, settings.suites(), progress)
        found = {}
        total = sum(map(len, prompts.values()))
        with progress.task("refusal log-odds", total, "prompts") as advance:
            for group, texts in prompts.items():
                found[group] = refusal_log_odds(
                    opened.model, opened.chat, texts, tree, on_batch=advance, say=progress.say
                )
    finite = all(math.isfinite(value) for values in found.values() for value in values)
    if measured.perplexity is None or not finite:
        raise RunFailure(f"arm {name}: the model's output is not finite; use --dtype float32")
    return Arm(name, mask, measured, measured.perplexity, found)


def _digest(mask: NeuronMask) -> str:
    """SHA-256 of the neurons, for arms that have no file."""
    digest = hashlib.sha256()
    for place in sorted(mask.neurons):
        digest.update(f"{place} {mask.neurons[place].tolist()}".encode())
    return digest.hexdigest()
