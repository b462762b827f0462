"""The arms of the comparison: which neurons are tuned for safety, when, and whether frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snt.errors import RequestError, unknown_name

UNDEFENDED = "undefended"
TUNED = {
    "sn": "safety neurons (SN-Tune)",
    "rsn": "safety neurons that are no foundation neurons (RSN-Tune)",
    "random": "as many random neurons as rsn has, in the same layers and kinds",
}
FREEZE, LAST = "-freeze", "-last"
BEFORE, SAFETY, TASK = "before", "safety", "task"
STAGES = (BEFORE, SAFETY, TASK)


@dataclass(frozen=True)
class Arm:
    """One way of defending. `tuned`: sn, rsn, random, or None for the undefended arm.

    `frozen`: the tuned neurons are protected in the fine-tune. `last`: the model itself is
    fine-tuned, and the patch is put on what came of it.
    """

    name: str
    tuned: str | None
    frozen: bool = False
    last: bool = False

    @property
    def fine_tuned(self) -> str | None:
        """Whose patch is in the model when the fine-tune begins; None for no patch."""
        return None if self.last else self.tuned

    @property
    def about(self) -> str:
        """A line for plans and tables."""
        if self.tuned is None:
            return "no safety tuning, the task alone"
        neurons = TUNED[self.tuned]
        if self.last:
            return f"the task on the model itself, then the patch of {neurons} put on it"
        return f"{neurons} tuned, then the task" + (", those protected in it" * self.frozen)


@dataclass(frozen=True)
class Job:
    """One measured model. Arms that share a safety tuning share its job; `before` has no seed."""

    stage: str
    arm: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """What its files are called: before, safety-rsn-0, task-rsn-freeze-0."""
        return "-".join(str(part) for part in (self.stage, self.arm, self.seed) if part is not None)


def arms_of(names: Sequence[str], protect: str = "none") -> tuple[Arm, ...]:
    """Arms by name; `-freeze` after a tuned arm protects its neurons in the fine-tune.

    `-last` puts the patch on after it. With `protect` freeze every arm that is tuned before the
    fine-tune is a frozen one. Raises UnknownNameError, and RequestError for no arm.
    """
    known = [UNDEFENDED, *(f"{name}{way}" for way in ("", FREEZE, LAST) for name in TUNED)]
    found: dict[str, Arm] = {}
    for name in names:
        if name not in known:
            raise unknown_name("arm", name, known)
        if name == UNDEFENDED:
            found[name] = Arm(name, None)
        elif name.endswith(LAST):
            found[name] = Arm(name, name.removesuffix(LAST), last=True)
        else:
            tuned, frozen = name.removesuffix(FREEZE), name.endswith(FREEZE) or protect == "freeze"
            full = f"{tuned}{FREEZE if frozen else ''}"
            found[full] = Arm(full, tuned, frozen)
    if not found:
        raise RequestError(f"no arm was given; choose from {', '.join(known)}")
    return tuple(found.values())


def jobs_of(arms: Sequence[Arm], seeds: Sequence[int]) -> Iterator[tuple[Job, Arm | None]]:
    """Every job in the order in which they run, each once, with the arm that a task job is of.

    Arms whose fine-tune is the same, that of the model itself, follow one another.
    """
    yield Job(BEFORE), None
    for seed in seeds:
        for tuned in dict.fromkeys(arm.tuned for arm in arms if arm.tuned is not None):
            yield Job(SAFETY, tuned, seed), None
        for arm in sorted(arms, key=lambda arm: arm.fine_tuned is not None):
            yield Job(TASK, arm.name, seed), arm


def job_at(arm: Arm, stage: str, seed: int) -> Job:
    """The job whose result is that of `arm` at `stage`; the undefended arm is not tuned."""
    if stage == BEFORE or (stage == SAFETY and arm.tuned is None):
        return Job(BEFORE)
    return Job(SAFETY, arm.tuned, seed) if stage == SAFETY else Job(TASK, arm.name, seed)
