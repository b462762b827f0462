"""The arms of the comparison: which neurons are tuned for safety, and how they meet the task."""

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
# What an arm's name may end in, and what is then said of the arm.
WAYS = {
    "": "{0} tuned, then the task",
    "freeze": "{0} tuned, then the task, those protected in it",
    "rehearse": "{0} tuned, then the task, those protected in it and tuned on between its steps",
    "last": "the task on the model itself, then the patch of {0} put on it",
}


def arm_name(tuned: str, way: str) -> str:
    """What the arm of a tuned mask is called: rsn, rsn-freeze."""
    return f"{tuned}-{way}" if way else tuned


# Per tuned mask the arms of it, by name.
WAYS_OF = {tuned: tuple(arm_name(tuned, way) for way in WAYS) for tuned in TUNED}
BEFORE, SAFETY, TASK = "before", "safety", "task"
STAGES = (BEFORE, SAFETY, TASK)


@dataclass(frozen=True)
class Arm:
    """One way of defending. `tuned`: sn, rsn, random, or None for the undefended arm.

    `way`, one of WAYS: freeze and rehearse protect the tuned neurons in the fine-tune; with last
    the model itself is fine-tuned, and the patch is put on what came of it.
    """

    name: str
    tuned: str | None
    way: str = ""

    @property
    def protected(self) -> bool:
        """Whether the task leaves the tuned neurons alone."""
        return self.way in ("freeze", "rehearse")

    @property
    def fine_tuned(self) -> str | None:
        """Whose patch is in the model when the fine-tune begins; None for no patch."""
        return None if self.way == "last" else self.tuned

    @property
    def about(self) -> str:
        """A line for plans and tables."""
        if self.tuned is None:
            return "no safety tuning, the task alone"
        return WAYS[self.way].format(TUNED[self.tuned])


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
    """Arms by name: undefended, or a tuned one with a way after a hyphen, such as rsn-freeze.

    With `protect` freeze or rehearse, that is the way of tuned arms that name none. Raises
    UnknownNameError, and RequestError for no arm.
    """
    known = [UNDEFENDED, *(name for names in WAYS_OF.values() for name in names)]
    found: dict[str, Arm] = {}
    for name in names:
        if name not in known:
            raise unknown_name("arm", name, known)
        tuned, _, way = name.partition("-")
        if name == UNDEFENDED:
            found[name] = Arm(name, None)
            continue
        way = way or ("" if protect == "none" else protect)
        full = arm_name(tuned, way)
        found[full] = Arm(full, tuned, way)
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
