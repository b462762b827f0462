"""What a recipe may say: its steps and their settings, checked when the file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from snt.evaluation.gates import parse_gate

STEPS = ("detect", "place", "tune", "robust-tune", "eval", "inspect")


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectStep(_Step):
    """`snt detect`."""

    corpus: str = "harmful/detect"
    against: str | None = "harmless/detect"
    importance: str = "exact"
    positions: str = "all"
    select: str = "budget=1%"
    combine: Literal["none", "subtract", "contrast"] | None = None
    consistency: float = Field(default=1.0, gt=0, le=1)
    kinds: tuple[str, ...] = ("q", "k", "v", "ffn")


class _SafetyTuning(_Step):
    """What every step that tunes for safety says of it; None leaves the default."""

    data: str = "refusals/tune"
    retain: tuple[str, ...] = ("harmless/tune", "lookalike/tune")
    lr: float | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch: int | None = Field(default=None, ge=1)
    retain_batch: int | None = Field(default=None, ge=1)
    retain_weight: float | None = Field(default=None, ge=0)


class TuneStep(_SafetyTuning):
    """`snt tune` with the mask of the detect step, or with `mask`."""

    mask: str | None = None
    retain_text: tuple[str, ...] = ("prose/tune",)
    text_weight: float | None = Field(default=None, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    accumulate: int = Field(default=1, ge=1)
    guard_every: int | None = Field(default=50, ge=0)
    max_over_refusal: float | None = Field(default=None, ge=0, le=1)


class OtherDetection(_Step):
    """A detection whose contrast is one more rule of a comparison of places.

    With `shards` n, its prompts are scored in n parts, and the neurons are those that all agree on.
    """

    corpus: str = "harmful/detect"
    against: str = "harmless/detect"
    importance: str = "exact"
    positions: str = "all"
    kinds: tuple[str, ...] = ("q", "k", "v", "ffn")
    shards: int = Field(default=1, ge=1, le=16)


class PlaceStep(_SafetyTuning):
    """Located masks of the detect step against random ones, tuned and measured alike.

    `detections` are made first; their names are rules.
    """

    detections: dict[str, OtherDetection] = Field(default_factory=dict)
    budgets: tuple[str, ...] = ("0.01%", "0.03%", "0.1%", "0.3%", "1%")
    rules: tuple[str, ...] | None = None
    draws: int = Field(default=3, ge=1)
    scales: tuple[float, ...] = (0.5, 0.75, 1.0)
    odds_limit: int = Field(default=120, ge=0)
    judge: str = "refusal,prefix"
    new_tokens: int = Field(default=48, ge=1)
    limit: int | None = Field(default=None, ge=1)
    corpora: dict[str, str] = Field(default_factory=dict)


class Tasks(_Step):
    """Tasks of lm-evaluation-harness: names, YAML files or folders, and how they are asked."""

    names: tuple[str, ...]
    few_shot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    chat_template: bool = False
    batch_size: int = Field(default=8, ge=1)


class Gcg(_Step):
    """The budget of a search for suffixes."""

    steps: int = Field(ge=1)
    prompts: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=1)


class RobustStep(_SafetyTuning):
    """`snt robust-tune` with the mask of the detect step, with `mask`, or one that it detects."""

    task: str = "gsm8k"
    task_eval: str | None = None
    task_answer: str | None = None
    task_train_limit: int | None = Field(default=None, ge=1)
    task_eval_limit: int | None = Field(default=None, ge=1)
    mask: str | None = None
    foundation: str | None = None
    foundation_select: str = "budget=5%"
    protect: Literal["none", "freeze", "rehearse"] = "none"
    rehearse_every: int = Field(default=2, ge=1)
    rehearse_lr: float = Field(default=1e-3, gt=0)
    last_scale: float = Field(default=1.0, ge=0, le=2)
    via: Literal["full", "lora"] = "full"
    arms: tuple[str, ...] = ("undefended", "sn", "rsn", "rsn-freeze", "random")
    seeds: tuple[int, ...] = (0,)
    task_lr: float | None = Field(default=None, gt=0)
    task_epochs: float = Field(default=3.0, gt=0)
    task_batch: int = Field(default=16, ge=1)
    task_rows: int = Field(default=4, ge=1)
    task_longest: int = Field(default=512, ge=1)
    task_tokens: int = Field(default=256, ge=1)
    lora_rank: int = Field(default=16, ge=1)
    judge: str = "refusal,prefix"
    new_tokens: int = Field(default=48, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    corpora: dict[str, str] = Field(default_factory=dict)
    save_models: bool = False


class EvalStep(_Step):
    """`snt eval` of the patch of the tune step beside its base model."""

    suites: tuple[str, ...] = ("safety", "over-refusal", "capability")
    languages: tuple[str, ...] = ()
    tasks: Tasks | None = None
    templates: str | None = None
    test_cases: str | None = None
    gcg: Gcg | None = None
    judge: str = "refusal,prefix"
    new_tokens: int = Field(default=48, ge=1)
    limit: int | None = Field(default=None, ge=1)
    corpora: dict[str, str] = Field(default_factory=dict)
    fail_if: tuple[str, ...] = ()
    check_against: tuple[str, ...] = ()
    force: bool = False

    @field_validator("fail_if")
    @classmethod
    def _are_gates(cls, gates: tuple[str, ...]) -> tuple[str, ...]:
        for gate in gates:
            parse_gate(gate)
        return gates


def given_schedule(step: _SafetyTuning) -> dict[str, Any]:
    """What a step says of its training, by the fields of `snt.training.Schedule`; no gaps."""
    named: dict[str, Any] = {
        "learning_rate": step.lr,
        "epochs": step.epochs,
        "batch": step.batch,
        "retain_batch": step.retain_batch,
        "retain_weight": step.retain_weight,
    }
    if isinstance(step, TuneStep):
        named |= {"text_weight": step.text_weight, "shape": step.schedule}
        named |= {"warmup": step.warmup, "accumulate": step.accumulate}
    return {key: value for key, value in named.items() if value is not None}


class InspectStep(_Step):
    """`snt inspect` of the mask."""


class Recipe(BaseModel):
    """A whole recipe: the steps that are named run, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = ""
    model: str | None = None
    backend: str | None = None
    dtype: str = "auto"
    system: str | None = None
    seed: int = 0
    detect: DetectStep | None = None
    place: PlaceStep | None = None
    tune: TuneStep | None = None
    robust_tune: RobustStep | None = Field(default=None, alias="robust-tune")
    eval: EvalStep | None = None
    inspect: InspectStep | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps that run."""
        return tuple(name for name in STEPS if getattr(self, name.replace("-", "_")) is not None)

    def directory(self, output: Path | None) -> Path:
        """Where the run's files go."""
        return output or Path("runs") / self.name

    def plan(self, output: Path | None = None) -> dict[str, Any]:
        """What would run, for `--dry-run`."""
        document = self.model_dump(mode="json", by_alias=True)
        return {
            "recipe": self.name,
            "about": self.about,
            "model": self.model or "(the default)",
            "directory": str(self.directory(output)),
            "steps": [{"step": name, **document[name]} for name in self.steps],
        }
