"""Safety Neuron Tuning: find, measure and strengthen the neurons that carry refusals.

Every command is a function of the same name here; nothing heavy is imported before one is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snt.detection import Detection, ShardDetection, detect, detect_shard
    from snt.evaluation.evaluate import evaluate
    from snt.evaluation.evaluation import Evaluation
    from snt.evaluation.gcg import GcgSettings
    from snt.evaluation.harness import TaskSettings
    from snt.evaluation.jailbreaks import JailbreakSettings
    from snt.evaluation.labelling import judge_agreement, sample_to_label
    from snt.evaluation.measurement import Measurement
    from snt.evaluation.rejudging import rejudge_file
    from snt.evaluation.settings import Settings
    from snt.generation import Drawing
    from snt.inspection import Inspection
    from snt.inspection import inspect_files as inspect
    from snt.languages import LanguageDetection, detect_languages
    from snt.mask_making import (
        MadeMask,
        mask_from_scores,
        mask_import,
        mask_intersect,
        mask_random,
        mask_subtract,
        mask_union,
    )
    from snt.masks import NeuronMask, load_mask, save_mask
    from snt.patch_making import MadePatch, patch_scale, patch_stack
    from snt.patches import Patch, load_patch, save_patch
    from snt.patching import patch_apply, patch_diff, patch_export, patch_revert
    from snt.protection import Protection, protect
    from snt.recipes import load_recipe, run, run_recipe
    from snt.rehearsal import Rehearsal, rehearse
    from snt.robust.settings import RobustSettings, TaskSchedule
    from snt.robust.task_data import Task, load_task
    from snt.robust.workflow import RobustRun, robust_tune
    from snt.sharing import Pulled, Pushed, pull, push
    from snt.training import Schedule
    from snt.tuning import Tuning, tune
    from snt.verification import Verification, verify
    from snt.verification_arms import VerifySettings

__version__ = "0.1.0"

_WHERE = {
    "detect": "snt.detection",
    "Detection": "snt.detection",
    "detect_shard": "snt.detection",
    "ShardDetection": "snt.detection",
    "detect_languages": "snt.languages",
    "LanguageDetection": "snt.languages",
    "Drawing": "snt.generation",
    "evaluate": "snt.evaluation.evaluate",
    "Evaluation": "snt.evaluation.evaluation",
    "judge_agreement": "snt.evaluation.labelling",
    "sample_to_label": "snt.evaluation.labelling",
    "rejudge_file": "snt.evaluation.rejudging",
    "Measurement": "snt.evaluation.measurement",
    "Settings": "snt.evaluation.settings",
    "TaskSettings": "snt.evaluation.harness",
    "JailbreakSettings": "snt.evaluation.jailbreaks",
    "GcgSettings": "snt.evaluation.gcg",
    "inspect": "snt.inspection:inspect_files",
    "Inspection": "snt.inspection",
    "MadeMask": "snt.mask_making",
    "mask_from_scores": "snt.mask_making",
    "mask_import": "snt.mask_making",
    "mask_intersect": "snt.mask_making",
    "mask_random": "snt.mask_making",
    "mask_subtract": "snt.mask_making",
    "mask_union": "snt.mask_making",
    "NeuronMask": "snt.masks",
    "load_mask": "snt.masks",
    "save_mask": "snt.masks",
    "Patch": "snt.patches",
    "load_patch": "snt.patches",
    "save_patch": "snt.patches",
    "MadePatch": "snt.patch_making",
    "patch_apply": "snt.patching",
    "patch_diff": "snt.patching",
    "patch_export": "snt.patching",
    "patch_revert": "snt.patching",
    "patch_scale": "snt.patch_making",
    "patch_stack": "snt.patch_making",
    "protect": "snt.protection",
    "Protection": "snt.protection",
    "rehearse": "snt.rehearsal",
    "Rehearsal": "snt.rehearsal",
    "load_recipe": "snt.recipes",
    "run": "snt.recipes",
    "run_recipe": "snt.recipes",
    "RobustRun": "snt.robust.workflow",
    "RobustSettings": "snt.robust.settings",
    "robust_tune": "snt.robust.workflow",
    "load_task": "snt.robust.task_data",
    "Task": "snt.robust.task_data",
    "TaskSchedule": "snt.robust.settings",
    "Schedule": "snt.training",
    "tune": "snt.tuning",
    "Tuning": "snt.tuning",
    "verify": "snt.verification",
    "Verification": "snt.verification",
    "VerifySettings": "snt.verification_arms",
    "Pulled": "snt.sharing",
    "Pushed": "snt.sharing",
    "pull": "snt.sharing",
    "push": "snt.sharing",
}
__all__ = [
    "Detection",
    "Drawing",
    "Evaluation",
    "GcgSettings",
    "Inspection",
    "JailbreakSettings",
    "MadeMask",
    "MadePatch",
    "LanguageDetection",
    "Measurement",
    "NeuronMask",
    "Patch",
    "Protection",
    "Rehearsal",
    "Pulled",
    "Pushed",
    "RobustRun",
    "RobustSettings",
    "Schedule",
    "Settings",
    "ShardDetection",
    "TaskSettings",
    "Task",
    "TaskSchedule",
    "Tuning",
    "Verification",
    "VerifySettings",
    "detect",
    "detect_shard",
    "detect_languages",
    "evaluate",
    "inspect",
    "judge_agreement",
    "load_mask",
    "load_patch",
    "load_recipe",
    "load_task",
    "mask_from_scores",
    "mask_import",
    "mask_intersect",
    "mask_random",
    "mask_subtract",
    "mask_union",
    "patch_apply",
    "patch_diff",
    "patch_export",
    "patch_revert",
    "patch_scale",
    "patch_stack",
    "protect",
    "rehearse",
    "pull",
    "push",
    "robust_tune",
    "run",
    "rejudge_file",
    "run_recipe",
    "sample_to_label",
    "save_mask",
    "save_patch",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'snt' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute or name)
