"""The steps of a recipe, each a workflow called with what the recipe says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.errors import MissingFileError
from snt.progress import Progress
from snt.recipe_schema import (
    DetectStep,
    EvalStep,
    OtherDetection,
    PlaceStep,
    Recipe,
    TuneStep,
    given_schedule,
)


@dataclass(frozen=True)
class Steps:
    """One run: every method is a step that reads and writes fixed names in the directory."""

    recipe: Recipe
    directory: Path
    offline: bool
    progress: Progress

    @property
    def mask(self) -> Path:
        """The mask that later steps use."""
        given = self.recipe.tune.mask if self.recipe.tune else None
        return Path(given) if given else self.directory / "mask.safetensors"

    @property
    def patch(self) -> Path:
        return self.directory / "patch"

    def detect(self) -> Any:
        from snt.detection import detect

        step = self.recipe.detect or DetectStep()
        found = detect(
            self.recipe.model,
            corpus=step.corpus,
            against=step.against,
            importance=step.importance,
            positions=step.positions,
            select_by=step.select,
            combine=step.combine,
            consistency=step.consistency,
            kinds=step.kinds,
            output=self.mask,
            **self._common(),
            seed=self.recipe.seed,
        )
        for name, other in self.recipe.place.detections.items() if self.recipe.place else ():
            self._detect_other(name, other)
        return found

    def place(self) -> Any:
        from snt.place import does_place_matter
        from snt.place_settings import RULES, PlaceSettings
        from snt.scores_files import scores_path

        step = self.recipe.place or PlaceStep()
        settings = PlaceSettings(
            budgets=step.budgets,
            rules=step.rules or (*step.detections, *RULES),
            draws=step.draws,
            scales=step.scales,
            odds_limit=step.odds_limit,
            data=step.data,
            retain=step.retain,
            schedule=self._schedule(step),
            evaluate=self._settings(step),
        )
        return does_place_matter(
            self.recipe.model,
            scores=scores_path(self.mask),
            against=scores_path(self.mask, against=True),
            others={
                name: [
                    (scores_path(mask), scores_path(mask, against=True))
                    for mask in self._others(name, one)
                ]
                for name, one in step.detections.items()
            },
            settings=settings,
            output=self.directory / "place",
            **self._common(),
        )

    def _detect_other(self, name: str, step: OtherDetection) -> None:
        from snt.detection import detect_shard

        for number, mask in enumerate(self._others(name, step), start=1):
            detect_shard(
                self.recipe.model,
                shard=f"{number}/{step.shards}",
                corpus=step.corpus,
                against=step.against,
                importance=step.importance,
                positions=step.positions,
                kinds=step.kinds,
                output=mask,
                **self._common(),
                seed=self.recipe.seed,
            )

    def _others(self, name: str, step: OtherDetection) -> list[Path]:
        """Where the masks of one more detection's parts would be; its scores lie beside them."""
        parts = [f"-{number}" for number in range(1, step.shards + 1)] if step.shards > 1 else [""]
        return [self.directory / "detections" / f"{name}{part}.safetensors" for part in parts]

    def tune(self) -> Any:
        from snt.tuning import tune

        step = self.recipe.tune or TuneStep()
        return tune(
            self.recipe.model,
            mask=self.mask,
            data=step.data,
            retain=step.retain,
            retain_text=step.retain_text,
            guard_every=step.guard_every or None,
            max_over_refusal=step.max_over_refusal,
            output=self.patch,
            schedule=self._schedule(step),
            # Measured in the same run, on the prompts of the eval step, which takes the replies up.
            evaluate=self._settings(self.recipe.eval).for_tuning() if self.recipe.eval else None,
            command=f"snt run {self.recipe.name}",
            **self._common(),
        )

    def robust_tune(self) -> Any:
        from snt.robust.recipe_step import run_step

        mask = self.mask if self.recipe.detect else None
        return run_step(self.recipe, mask, self.directory / "robust", self._common())

    def eval(self) -> Any:
        from snt.evaluation.evaluate import BASE, evaluate

        if not (self.patch / "patch.safetensors").is_file():
            raise MissingFileError(f"{self.patch} holds no patch; run the recipe from `tune` on")
        step = self.recipe.eval or EvalStep()
        return evaluate(
            str(self.patch),
            settings=self._settings(step),
            baseline=BASE,
            base=self.recipe.model,
            check_against=self._made_from(),
            force=step.force,
            fail_if=step.fail_if,
            output=self.directory / "evaluation",
            **self._common(),
        )

    def check_eval(self) -> None:
        """What the eval step would refuse, before anything is run: gates, prompts trained on."""
        from snt.evaluation.gates import parse_gates
        from snt.evaluation.held_out import check_held_out
        from snt.evaluation.suites import METRICS, gate_names

        step = self.recipe.eval or EvalStep()
        chosen = self._settings(step).chosen(self.offline)
        tasks = step.tasks is not None
        parse_gates(step.fail_if, gate_names(chosen), METRICS, baseline=True, tasks=tasks)
        check_held_out((), chosen, given=self._made_from(), force=step.force, offline=self.offline)

    def _made_from(self) -> tuple[str, ...]:
        """The corpora that the recipe makes its patch from, and those that its eval step names."""
        detect, tune, step = self.recipe.detect, self.recipe.tune, self.recipe.eval
        named = [detect.corpus, detect.against] if detect else []
        named += [tune.data, *tune.retain] if tune else []
        named += step.check_against if step else []
        return tuple(name for name in dict.fromkeys(named) if name not in (None, "none"))

    def inspect(self) -> Any:
        from snt.inspection import inspect_files

        return inspect_files([self.mask])

    def _settings(self, step: EvalStep | PlaceStep) -> Any:
        from snt.evaluation.judges import judge_list
        from snt.evaluation.settings import Settings

        more = self._suites(step) if isinstance(step, EvalStep) else {}
        return Settings(
            judges=judge_list([step.judge]),
            new_tokens=step.new_tokens,
            limit=step.limit,
            corpora=step.corpora,
            **more,
        )

    def _suites(self, step: EvalStep) -> dict[str, Any]:
        from snt.evaluation.gcg import GcgSettings
        from snt.evaluation.harness import TaskSettings
        from snt.evaluation.jailbreaks import JailbreakSettings

        tasks, gcg = step.tasks, step.gcg
        return {
            "suites": step.suites,
            "languages": step.languages,
            "tasks": None
            if tasks is None
            else TaskSettings(**tasks.model_dump(), seed=self.recipe.seed),
            "jailbreak": JailbreakSettings(
                step.templates,
                step.test_cases,
                None if gcg is None else GcgSettings(**gcg.model_dump(), seed=self.recipe.seed),
            ),
        }

    def _schedule(self, step: TuneStep | PlaceStep) -> Any:
        from snt.training import Schedule

        return Schedule(seed=self.recipe.seed, **given_schedule(step))

    def _common(self) -> dict[str, Any]:
        return {
            "backend": self.recipe.backend,
            "dtype": self.recipe.dtype,
            "system": self.recipe.system,
            "offline": self.offline,
            "progress": self.progress,
        }
