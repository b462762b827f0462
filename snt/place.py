"""Does the place matter: located masks against random ones, tuned alike, at several budgets.

The question under the whole method: would any neurons of the same number do as well? Every arm is
trained from the same start on the same data in the same order; only the mask differs. Each trained
arm is measured at several scales of its deltas, which gives a curve of safety against over-refusal
instead of one point. Finished arms are kept in a file, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from snt import __version__, corpora
from snt.atomic import check_writable, write_json, write_text
from snt.corpora import TrainingPairs
from snt.digests import key_of
from snt.errors import FormatError, MismatchError
from snt.memory import peak_bytes, release
from snt.opening import ModelChoice, OpenModel, named_model, open_model
from snt.place_arms import CONTROLS, PlaceArm, agreed_order, arms_of
from snt.place_bench import Bench
from snt.place_points import ArmResult
from snt.place_results import PlaceRow, place_results, times_needed
from snt.place_settings import PlaceSettings
from snt.preflight import Work
from snt.progress import Progress, Silence
from snt.scores import Place
from snt.scores_files import ScoresFile, load_scores


@dataclass(frozen=True)
class Placing:
    """Every arm, one row per rule and budget, and how many times more the random ones need."""

    arms: tuple[ArmResult, ...]
    rows: tuple[PlaceRow, ...]
    before: Mapping[str, float]
    directory: Path
    settings: PlaceSettings
    description: Mapping[str, Any]
    seconds: float
    peak_bytes: int

    def needed(self) -> dict[str, dict[str, float | None]]:
        """Per located rule and budget, times its parameters that matched random ones need."""
        rules = dict.fromkeys(row.rule for row in self.rows if row.rule not in CONTROLS)
        return {rule: times_needed(self.rows, rule, "random") for rule in rules}

    def as_json(self) -> dict[str, Any]:
        """The report, also saved as report.json."""
        return {
            **self.description,
            "settings": self.settings.as_json(),
            "before": dict(self.before),
            "rows": [asdict(row) for row in self.rows],
            "random_needs_times": self.needed(),
            "arms": len(self.arms),
            "directory": str(self.directory),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "snt": __version__,
        }


def does_place_matter(
    model: str | None = None,
    *,
    scores: Path,
    against: Path,
    others: Mapping[str, Sequence[tuple[Path, Path]]] | None = None,
    settings: PlaceSettings | None = None,
    output: Path = Path("place"),
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Placing:
    """Train and measure every arm cut from two scores files of a detection.

    `others` names rules of other detections by their pairs of scores files: what is cut is their
    contrast, and with several pairs (halves) what all of them agree on. Arms that `output` holds
    already, made with the same settings, are not made again. Raises RequestError and children for
    what cannot be served, MismatchError for scores of another model.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    settings = settings or PlaceSettings()
    settings.check()
    settings.evaluate.chosen(offline)
    check_writable(output, directory=True)
    first, second = load_scores(scores), load_scores(against)
    pairs = corpora.load_pairs(settings.data, offline=offline, progress=progress)
    system = pairs.system if system is None else system
    choice = ModelChoice(model, backend, dtype, system, offline)
    work = Work(("tune", "score", "generate", "patch"))
    opened = open_model(choice, named=named_model(first), work=work, progress=progress)
    others_read = {
        name: [(load_scores(one), load_scores(two)) for one, two in pairs]
        for name, pairs in (others or {}).items()
    }
    every = [first, second, *(one for held in others_read.values() for two in held for one in two)]
    for file in every:
        if file.anatomy != opened.model.anatomy:
            raise MismatchError(f"the scores are for another model than {opened.id}; detect on it")
    orders = {
        name: agreed_order([(one.scores, two.scores) for one, two in held])
        for name, held in others_read.items()
    }
    arms = list(_arms(opened, first, second, orders, settings))
    bench = Bench(opened, settings, pairs, progress)
    finished = _finished(output / "arms.jsonl")
    before = _before(output / "before.json", _key(opened, settings, pairs), bench)
    results = []
    for number, arm in enumerate(arms, start=1):
        key = arm.name, _key(opened, settings, pairs, arm)
        if key not in finished:
            progress.say(f"arm {number} of {len(arms)}: {arm.name}")
            finished[key] = bench.run(arm, before)
            row = {"key": key[1], "name": arm.name, **finished[key].as_json()}
            _append(output / "arms.jsonl", row)
            release()
        results.append(finished[key])
    placing = Placing(
        tuple(results),
        tuple(place_results(results)),
        before,
        output,
        settings,
        opened.describe(),
        time.perf_counter() - started,
        peak_bytes(),
    )
    from snt.report.place import place_picture

    write_json(output / "report.json", placing.as_json())
    write_text(output / "curve.svg", place_picture(placing))
    return placing


def _arms(
    opened: OpenModel,
    first: ScoresFile,
    second: ScoresFile,
    others: Mapping[str, Mapping[Place, Tensor]],
    settings: PlaceSettings,
) -> Iterator[PlaceArm]:
    about = opened.describe()
    return arms_of(
        opened.model.anatomy,
        first.scores,
        second.scores,
        settings.rules,
        settings.budgets,
        settings.draws,
        opened.model.parameters,
        {key: about[key] for key in ("model", "fingerprint")},
        others,
    )


def _key(
    opened: OpenModel, settings: PlaceSettings, pairs: TrainingPairs, arm: PlaceArm | None = None
) -> str:
    """A digest of all that an arm's result depends on: the neurons, and what all arms share."""
    shared = {key: value for key, value in settings.as_json().items() if key not in _WHICH}
    places = sorted(arm.mask.neurons.items()) if arm else ()
    neurons = [[*place, found.tolist()] for place, found in places]
    return key_of(opened.describe(), shared, pairs.sha256, neurons)


# What says which arms there are, and not what each of them is.
_WHICH = ("budgets", "rules", "draws")


def _before(path: Path, key: str, bench: Bench) -> dict[str, float]:
    """Figures of the untouched model, kept as arms are."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["key"] == key:
            return dict(held["values"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or by other settings
    values = bench.before()
    write_json(path, {"key": key, "values": values})
    return values


def _finished(path: Path) -> dict[tuple[str, str], ArmResult]:
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            key = row.pop("name"), row.pop("key")
        except (ValueError, KeyError, AttributeError) as error:
            # A run that was killed while writing leaves one broken line, which is made again.
            if line.endswith("}"):
                raise FormatError(f"{path}, line {number} is no finished arm: {error!r}") from error
            continue
        found[key] = ArmResult.from_json(row)
    return found


def _append(path: Path, row: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.read_bytes() if path.is_file() else b""
    with path.open("ab") as file:
        if held and not held.endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps(row, sort_keys=True).encode() + b"\n")
