"""The masks of the arms: safety neurons, foundation neurons, what is left of the ones without the
others, and random neurons of the same number. Each is made once and kept in the run's directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt import corpora
from snt.anatomy import Anatomy
from snt.atomic import sha256_of
from snt.detection import detect
from snt.digests import key_of
from snt.errors import MismatchError, RequestError
from snt.mask_making import mask_from_scores
from snt.masks import NeuronMask, load_mask, save_mask
from snt.random_masks import random_like
from snt.robust.arms import Arm
from snt.robust.settings import RobustSettings
from snt.robust.stages import Stages
from snt.scores_files import scores_path

FOUNDATION_CORPUS = "harmless/detect"


@dataclass(frozen=True)
class ArmMasks:
    """Mask files by what they are: sn, rsn, random-SEED; and the facts that a report needs."""

    files: dict[str, Path]
    facts: dict[str, dict[str, Any]]

    def path(self, tuned: str, seed: int) -> Path:
        """The mask that an arm tunes."""
        return self.files[f"random-{seed}" if tuned == "random" else tuned]


def make_masks(
    settings: RobustSettings,
    arms: tuple[Arm, ...],
    mask: Path | None,
    anatomy: Anatomy,
    identity: Any,
    model: str | None,
    stages: Stages,
    common: dict[str, Any],
) -> ArmMasks:
    """Detect, cut, subtract and draw what the arms need.

    `identity` says which model is held how, for the keys. Raises as `detect` does, MismatchError
    for a mask of another model, RequestError when no safety neuron is left without the foundation.
    """
    tuned = {arm.tuned for arm in arms} - {None}
    if not tuned:
        return ArmMasks({}, {})
    found = mask or _detected(model, identity, stages, common)
    safety = _fitting(found, anatomy)
    files, facts = {"sn": found}, {"sn": _facts(safety)}
    if tuned & {"rsn", "random"}:
        ground = _fitting(_foundation(settings, found, identity, model, stages, common), anatomy)
        robust = safety.subtract(ground)
        if not len(robust):
            raise RequestError(
                f"all {len(safety)} safety neurons are foundation neurons as well; give a smaller "
                f"--foundation-select than {settings.foundation_select}"
            )
        facts["foundation"] = {
            **_facts(ground),
            "of_safety": len(safety.intersect(ground)) / len(safety),
        }
        files["rsn"] = stages.directory / "masks" / "robust.safetensors"
        facts["rsn"] = _facts(robust)
        _save_once(robust, files["rsn"])
        for seed in settings.seeds if "random" in tuned else ():
            drawn = random_like(robust, seed)
            files[f"random-{seed}"] = stages.directory / "masks" / f"random-{seed}.safetensors"
            facts[f"random-{seed}"] = _facts(drawn)
            _save_once(drawn, files[f"random-{seed}"])
    return ArmMasks(files, facts)


def _detected(model: str | None, identity: Any, stages: Stages, common: dict[str, Any]) -> Path:
    """The mask of a detection with the defaults of `snt detect`, made once."""
    path = stages.directory / "mask.safetensors"
    key = key_of("mask", identity)
    if not stages.done("mask", key, path, scores_path(path, against=True)):
        common["progress"].say("safety neurons: detecting")
        detect(model, output=path, **common)
        stages.note("mask", key)
    return path


def _foundation(
    settings: RobustSettings,
    mask: Path,
    identity: Any,
    model: str | None,
    stages: Stages,
    common: dict[str, Any],
) -> Path:
    """Foundation neurons: a mask that was given, one cut from scores, or one detected."""
    given, select_by = settings.foundation, settings.foundation_select
    if given is not None and Path(given).suffix == ".safetensors":
        return Path(given)
    path = stages.directory / "masks" / "foundation.safetensors"
    scores = scores_path(mask, against=True)
    if given is None and scores.is_file():
        mask_from_scores([scores], select_by=select_by, output=path)
        return path
    corpus = corpora.load(
        given or FOUNDATION_CORPUS, offline=common["offline"], progress=common["progress"]
    )
    key = key_of("foundation", identity, corpus.sha256, select_by)
    if not stages.done("foundation", key, path):
        common["progress"].say(f"foundation neurons: detecting on {corpus.name}")
        detect(model, corpus=corpus, against=None, select_by=select_by, output=path, **common)
        stages.note("foundation", key)
    return path


def _fitting(path: Path, anatomy: Anatomy) -> NeuronMask:
    held = load_mask(path)
    if held.anatomy != anatomy:
        raise MismatchError(
            f"{path} is for another model ({held.anatomy.shape()}) than the one to be tuned "
            f"({anatomy.shape()}); detect on it"
        )
    if not len(held):
        raise RequestError(f"{path} holds no neuron")
    return held


def _save_once(mask: NeuronMask, path: Path) -> None:
    """A file that says the same is left as it is."""
    beside = path.with_name(f".{path.name}.new")
    save_mask(mask, beside)
    if path.is_file() and sha256_of(path) == sha256_of(beside):
        beside.unlink()
    else:
        beside.replace(path)


def _facts(mask: NeuronMask) -> dict[str, Any]:
    return {"neurons": len(mask), "parameters": mask.parameters, "counts": mask.counts()}
