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
from snt.recipe_reading import read_document, shortened
from snt.recipe_schema import STEPS, Recipe
from snt.recipe_steps import Steps

_FAULTS = 12


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
    document = read_document(path)
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
        more = f"; and {len(faults) - _FAULTS} more" if len(faults) > _FAULTS else ""
        told = "; ".join(map(shortened, faults[:_FAULTS]))
        raise FormatError(f"{path}: {told}{more}") from error
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
    run = Steps(recipe, directory, offline, progress)
    if "eval" in steps:
        run.check_eval()
    results: dict[str, Any] = {}
    for number, name in enumerate(steps, start=1):
        progress.say(f"step {number} of {len(steps)}: {name}")
        results[name] = getattr(run, name.replace("-", "_"))()
        release()
    return RecipeRun(recipe, directory, results, time.perf_counter() - started, peak_bytes())


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
