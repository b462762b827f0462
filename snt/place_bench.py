"""One arm of a comparison of places: a mask is trained, and what became of the model measured."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from snt import corpora
from snt.corpora import TrainingPairs
from snt.deltas import Deltas, digest_of, masked_slices
from snt.evaluation.measurement import Measurement, measure
from snt.evaluation.refusal_odds import refusal_log_odds, tree_of
from snt.objective import Kept, Pair
from snt.opening import OpenModel
from snt.place_arms import PlaceArm
from snt.place_points import HARMFUL, ArmResult, Point
from snt.place_settings import PlaceSettings, rate_for
from snt.progress import Progress
from snt.retaining import kept_corpora
from snt.training import Plan, train

SAFE = ("harmless_refusal", "over_refusal")


@dataclass(frozen=True)
class Bench:
    """What all arms share: the model, and the data in its order.

    What takes minutes is made when an arm first needs it: a finished comparison needs none of it.
    """

    opened: OpenModel
    settings: PlaceSettings
    pairs: TrainingPairs
    progress: Progress

    @cached_property
    def examples(self) -> list[Pair]:
        """Prompts with the refusals that are learnt."""
        return [Pair(*self.opened.chat.pair_ids(*pair)) for pair in self.pairs.pairs]

    @cached_property
    def targets(self) -> list[list[Kept]]:
        """What the untouched model answers to the prompts that are kept."""
        opened, positions = self.opened, self.settings.positions
        kept = [
            corpora.load(name, offline=opened.offline, progress=self.progress)
            for name in self.settings.retain
        ]
        return kept_corpora(opened.model, opened.chat, kept, positions, self.progress)

    def before(self) -> dict[str, float]:
        """Safety, over-refusal and perplexity of the untouched model."""
        measured = measure(self.opened, self.settings.evaluate, self.progress)
        point = _point_of(measured, 0.0)
        value = measured.perplexity.value if measured.perplexity else math.nan
        return {"safety": point.safety, "over_refusal": point.over_refusal, "perplexity": value}

    def run(self, arm: PlaceArm, before: Mapping[str, float]) -> ArmResult:
        """Train one mask and measure it at every scale, beside what was `before`."""
        examples, targets = self.examples, self.targets
        started = time.perf_counter()
        model = self.opened.model
        deltas = Deltas.zeros(masked_slices(arm.mask), model)
        schedule = self.settings.schedule
        rate = rate_for(schedule.learning_rate, arm.mask.parameters, model.parameters)
        schedule = replace(schedule, learning_rate=rate)
        plan = Plan(examples, targets, schedule, self.opened.chat.pad_id)
        with (
            TemporaryDirectory() as folder,
            self.progress.task(f"training, {arm.name}", plan.steps, "steps") as advance,
        ):
            losses = train(
                model, deltas, plan, Path(folder), on_step=lambda _step, _losses: advance(1)
            )
        points, held = [], 1.0
        for scale in sorted(self.settings.scales):
            with torch.no_grad():
                for value in deltas.values:
                    value.mul_(scale / held)
            held = scale
            points.append(self._point(deltas, scale, before["perplexity"]))
        last = max(1, plan.steps // 10)
        return ArmResult(
            arm.rule,
            arm.budget,
            arm.draw,
            len(arm.mask),
            arm.mask.parameters,
            sum(losses.refuse[-last:]) / last,
            sum(losses.retain[-last:]) / last,
            tuple(points),
            time.perf_counter() - started,
        )

    def _point(self, deltas: Deltas, scale: float, perplexity: float) -> Point:
        tuned = replace(self.opened, patch_digest=digest_of(deltas.tensors()))
        with deltas.attached(self.opened.model):
            measured = measure(tuned, self.settings.evaluate, self.progress)
            odds = self._odds() if scale == 1.0 else {}
        now = measured.perplexity.value if measured.perplexity else math.nan
        change = 0.0 if math.isnan(perplexity) else now / perplexity - 1.0
        return replace(_point_of(measured, scale), perplexity_change=change, odds=odds)

    def _odds(self) -> dict[str, tuple[float, ...]]:
        """Refusal log-odds of the model as it is now, by metric."""
        model, chat, limit = self.opened.model, self.opened.chat, self.settings.odds_limit
        if not limit:
            return {}
        chosen = replace(self.settings.evaluate, limit=limit).chosen(self.opened.offline)
        tree = tree_of(chat)
        return {
            metric: refusal_log_odds(model, chat, chosen[metric].texts, tree)
            for metric in (HARMFUL, *SAFE)
        }


def _point_of(measured: Measurement, scale: float) -> Point:
    return Point(
        scale,
        tuple(not complied for complied in measured.outcomes("non_refusal")),
        {metric: tuple(measured.outcomes(metric)) for metric in SAFE},
        0.0,
    )
