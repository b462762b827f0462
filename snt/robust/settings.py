"""What a comparison of robust tunings holds fixed: how every arm is tuned, fine-tuned, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from snt.errors import RequestError, unknown_name
from snt.patch_algebra import check_scale
from snt.rehearsal_steps import EVERY, RATE, check_pace
from snt.tuning import POSITIONS, RETAIN

if TYPE_CHECKING:
    from snt.evaluation.settings import Settings
    from snt.training import Schedule

Protect = Literal["none", "freeze", "rehearse"]
Via = Literal["full", "lora"]
RATES: Mapping[Via, float] = {"full": 2e-5, "lora": 2e-4}


@dataclass(frozen=True)
class TaskSchedule:
    """The fine-tune on the task: AdamW with linear decay, as people run it.

    `learning_rate` None is 2e-5 for the whole model and 2e-4 for LoRA. `batch` rows make a step,
    `rows_at_once` of them go through the model together. `longest` tokens of a row are used.
    `rank` and twice that as alpha are LoRA's.
    """

    epochs: float = 3.0
    learning_rate: float | None = None
    batch: int = 16
    rows_at_once: int = 4
    longest: int = 512
    weight_decay: float = 0.01
    warmup: float = 0.03
    rank: int = 16

    def rate(self, via: Via) -> float:
        """The learning rate that is used."""
        return RATES[via] if self.learning_rate is None else self.learning_rate

    def steps(self, rows: int) -> int:
        """Optimizer steps over `rows` rows."""
        return max(1, round(self.epochs * rows / self.batch))

    def check(self) -> None:
        """Raises RequestError for what no fine-tune can be made of."""
        for name in ("epochs", "batch", "rows_at_once", "longest", "rank"):
            if getattr(self, name) <= 0:
                raise RequestError(f"task {name} is {getattr(self, name)}; give more than 0")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise RequestError(f"task learning rate {self.learning_rate}; give more than 0")


@dataclass(frozen=True)
class RobustSettings:
    """The whole comparison but the model, the mask and the task's rows.

    `foundation` is a mask file, a corpus, or None for the second corpus of the detection;
    `foundation_select` cuts foundation neurons from scores. `protect` is the way of tuned arms that
    name none; rehearsed neurons take a step after every `rehearse_every` steps of the task, at the
    constant `rehearse_rate`. `last_scale`, 0 to 2, is of patches put on last. `task_tokens`
    is the longest reply to a task's prompt.
    """

    tuning: Schedule
    evaluate: Settings
    arms: tuple[str, ...] = ("undefended", "sn", "rsn", "rsn-freeze", "random")
    seeds: tuple[int, ...] = (0,)
    protect: Protect = "none"
    rehearse_every: int = EVERY
    rehearse_rate: float = RATE
    last_scale: float = 1.0
    via: Via = "full"
    foundation: str | None = None
    foundation_select: str = "budget=5%"
    data: str = "refusals/tune"
    retain: tuple[str, ...] = RETAIN
    positions: int = POSITIONS
    task: TaskSchedule = field(default_factory=TaskSchedule)
    task_tokens: int = 256

    def check(self) -> None:
        """Raises RequestError and UnknownNameError for what cannot be served."""
        from snt.robust.arms import arms_of

        if self.protect not in get_args(Protect):
            raise unknown_name("protection", self.protect, get_args(Protect))
        if self.via not in get_args(Via):
            raise unknown_name("way", self.via, get_args(Via), "It is the value of --via.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise RequestError(f"seeds {self.seeds}: give different ones, none negative")
        check_pace(self.rehearse_every, self.rehearse_rate)
        check_scale(self.last_scale)
        if self.task_tokens < 1:
            raise RequestError(f"{self.task_tokens} new tokens for a task; give at least 1")
        if "safety" not in self.evaluate.suites:
            raise RequestError("the suite safety is left out, and it is what the arms are about")
        arms_of(self.arms, self.protect)
        self.task.check()

    def as_json(self) -> dict[str, Any]:
        """All of it, as it stands in the report."""
        return asdict(self)
