"""Recipes: a YAML file read into checked steps, run one after the other into one directory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from snt.errors import FormatError, MissingFileError, RequestError, unknown_name
from snt.memory import peak_bytes, release
from snt.progress import Progress, Silence
from snt.recipe_schema import (
    STEPS,
    DetectStep,
    EvalStep,
    OtherDetection,
    PlaceStep,
    Recipe,
    TuneStep,
)


@dataclass(frozen=True)
class RecipeRun:
    """The results of a run's steps by name, and the files in `directory`."""

    recipe: Recipe
    directory: Path
    results: Mapping[str, Any]
    seconds: float
    peak_bytes: int

    def check(self) -> None:
        """Raises NegativeResult (exit 3) when a gate of the eval step was met."""
        if "eval" in self.results:
            self.results["eval"].check()

    def as_json(self) -> dict[str, Any]:
        """The report of `snt run --json`."""
        return {
            "recipe": self.recipe.name,
            "directory": str(self.directory),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "steps": {name: result.as_json() for name, result in self.results.items()},
        }


def load_recipe(reference: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a YAML file or a built-in recipe's name, with `KEY=VALUE` changes (dotted keys).

    Raises MissingFileError, or FormatError that lists every fault of the recipe together.
    """
    path = _find(reference)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{path}: a recipe is a mapping of names to settings")
    # `detect:` with nothing after it asks for the step with its defaults.
    document = {
        key: {} if key in STEPS and value is None else value for key, value in document.items()
    }
    for change in changes:
        _set(document, change)
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        raise FormatError(f"{path}: " + "; ".join(faults)) from error
    _check(recipe, path)
    return recipe


def run(
    recipe: str,
    changes: Sequence[str] = (),
    *,
    output: Path | None = None,
    start: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> RecipeRun:
    """Load a recipe and run it: `load_recipe`, then `run_recipe`."""
    loaded = load_recipe(recipe, changes)
    return run_recipe(loaded, output=output, start=start, offline=offline, progress=progress)


def built_in_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with snt."""
    package = Path(__file__).parent
    # In a wheel the recipes lie inside the package, in a checkout beside it.
    for folder in (package / "data" / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def run_recipe(
    recipe: Recipe,
    *,
    output: Path | None = None,
    start: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> RecipeRun:
    """Run the steps from `start` on; what earlier steps wrote is read from the directory.

    Raises UnknownNameError for a step that the recipe does not have, MissingFileError when `start`
    needs a file that is not there, and whatever the steps raise.
    """
    if start is not None and start not in recipe.steps:
        raise unknown_name("step", start, recipe.steps)
    started = time.perf_counter()
    progress = progress or Silence()
    directory = recipe.directory(output)
    steps = recipe.steps[recipe.steps.index(start) if start else 0 :]
    run = _Run(recipe, directory, offline, progress)
    if "eval" in steps:
        run.check_eval()
    results: dict[str, Any] = {}
    for number, name in enumerate(steps, start=1):
        progress.say(f"step {number} of {len(steps)}: {name}")
        results[name] = getattr(run, name.replace("-", "_"))()
        release()
    return RecipeRun(recipe, directory, results, time.perf_counter() - started, peak_bytes())


@dataclass(frozen=True)
class _Run:
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
        return detect(
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
            others={name: self._other(name, one) for name, one in step.detections.items()},
            settings=settings,
            output=self.directory / "place",
            **self._common(),
        )

    def _other(self, name: str, step: OtherDetection) -> list[tuple[Path, Path]]:
        """Make one more detection; its scores files, a pair for each part."""
        from snt.detection import detect_shard
        from snt.scores_files import scores_path

        pairs = []
        for number in range(1, step.shards + 1):
            part = f"-{number}" if step.shards > 1 else ""
            mask = self.directory / "detections" / f"{name}{part}.safetensors"
            pairs.append((scores_path(mask), scores_path(mask, against=True)))
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
        return pairs

    def tune(self) -> Any:
        from snt.tuning import tune

        step = self.recipe.tune or TuneStep()
        return tune(
            self.recipe.model,
            mask=self.mask,
            data=step.data,
            retain=step.retain,
            retain_text=step.retain_text,
            guard_every=step.guard_every,
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
        from snt.evaluation.suites import METRICS

        step = self.recipe.eval or EvalStep()
        chosen = self._settings(step).chosen(self.offline)
        parse_gates(step.fail_if, chosen, METRICS, baseline=True)
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

        named: dict[str, Any] = {
            "learning_rate": step.lr,
            "epochs": step.epochs,
            "batch": step.batch,
        }
        named |= {"retain_batch": step.retain_batch, "retain_weight": step.retain_weight}
        if isinstance(step, TuneStep):
            named |= {"text_weight": step.text_weight, "shape": step.schedule}
            named |= {"warmup": step.warmup, "accumulate": step.accumulate}
        given: Any = {key: value for key, value in named.items() if value is not None}
        return Schedule(seed=self.recipe.seed, **given)

    def _common(self) -> dict[str, Any]:
        return {
            "backend": self.recipe.backend,
            "dtype": self.recipe.dtype,
            "system": self.recipe.system,
            "offline": self.offline,
            "progress": self.progress,
        }


def _find(reference: str) -> Path:
    path = Path(reference)
    if path.is_file():
        return path
    known = built_in_recipes()
    name = path.name.removesuffix(".yaml")
    # `recipes/quickstart.yaml` works wherever snt is installed, as the README writes it.
    if name in known and path.parent in (Path(), Path("recipes")):
        return known[name]
    if path.suffix or len(path.parts) > 1:
        raise MissingFileError(f"recipe {path} does not exist; built in: {', '.join(known)}")
    raise unknown_name("recipe", reference, known, "A file is given by its path.")


def _set(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise RequestError(f"--set {change!r} is not KEY=VALUE, as in --set tune.epochs=1")
    *parents, last = key.split(".")
    place: Any = document
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise RequestError(f"--set {change!r}: {parent!r} holds no settings")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"--set {change!r}: the value is no YAML") from error


def _check(recipe: Recipe, path: Path) -> None:
    if not recipe.steps:
        raise FormatError(f"{path} names no step; steps: {', '.join(STEPS)}")
    if recipe.tune and not recipe.detect and not recipe.tune.mask:
        raise FormatError(f"{path}: tune needs a detect step, or tune.mask")
    if recipe.place and not (recipe.detect and recipe.detect.against):
        raise FormatError(f"{path}: place needs a detect step with a second corpus")
    if recipe.eval and not recipe.tune:
        raise FormatError(f"{path}: eval measures the patch of a tune step; there is none")
