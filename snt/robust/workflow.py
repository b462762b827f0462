"""`robust_tune`: the arms of RSN-Tune in one run, and what a fine-tune leaves of each defence.

Source of the idea: Zhao et al., ICLR 2025, section 5 and table 4. Seeds, intervals, paired tests,
the random arm and the frozen arms are this project's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt import __version__, corpora
from snt.atomic import check_writable, write_json
from snt.evaluation.perplexity import relative_change
from snt.evaluation.settings import Settings
from snt.evaluation.statistics_json import difference_json, rate_json
from snt.masks import load_mask
from snt.memory import peak_bytes
from snt.opening import ModelChoice, named_model
from snt.progress import Progress, Silence
from snt.robust.arms import (
    BEFORE,
    STAGES,
    TASK,
    UNDEFENDED,
    WAYS_OF,
    Arm,
    Job,
    arms_of,
    job_at,
    jobs_of,
)
from snt.robust.bench import Bench
from snt.robust.identity import identify
from snt.robust.masks import make_masks
from snt.robust.results import (
    METRICS,
    Comparison,
    Kept,
    StageResult,
    compare_arms,
    kept_refusals,
    stage_spread,
)
from snt.robust.settings import RobustSettings
from snt.robust.stages import Stages
from snt.robust.task_data import Task
from snt.robust.verdicts import sentences
from snt.training import Schedule

REFERENCES = (UNDEFENDED, *WAYS_OF["sn"], *WAYS_OF["random"], "rsn-freeze")


@dataclass(frozen=True)
class RobustRun:
    """Every stage of every arm and seed, and where its files are."""

    arms: tuple[Arm, ...]
    results: Mapping[Job, StageResult]
    settings: RobustSettings
    description: Mapping[str, Any]
    directory: Path
    reused: int
    seconds: float
    peak_bytes: int

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.settings.seeds

    def comparisons(self) -> list[Comparison]:
        """Every arm after the task against undefended, all of sn and of random, and rsn-freeze."""
        return compare_arms(self.results, self.arms, self.seeds, REFERENCES)

    def kept(self) -> list[Kept]:
        """Per tuned arm, what the fine-tune left of the refusals that its tuning gave."""
        tuned = [arm for arm in self.arms if arm.tuned is not None]
        return [kept_refusals(self.results, arm, self.seeds) for arm in tuned]

    def verdicts(self) -> list[str]:
        """What was found, in sentences; a null result as one."""
        return sentences(self.comparisons(), self.kept())

    def as_json(self) -> dict[str, Any]:
        """The report of `snt robust-tune --json`: one row per arm, stage and seed, and sums."""
        return {
            **self.description,
            "settings": self.settings.as_json(),
            "rows": [self._row(*at) for at in self._places()],
            "summary": [self._summary(arm, stage) for arm in self.arms for stage in STAGES],
            "comparisons": [_comparison_json(one) for one in self.comparisons()],
            "kept_refusals": [_kept_json(one) for one in self.kept()],
            "verdicts": self.verdicts(),
            "directory": str(self.directory),
            "reused": self.reused,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "snt": __version__,
        }

    def _places(self) -> list[tuple[Arm, str, int]]:
        return [(arm, stage, seed) for seed in self.seeds for arm in self.arms for stage in STAGES]

    def _row(self, arm: Arm, stage: str, seed: int) -> dict[str, Any]:
        result = self.results[job_at(arm, stage, seed)]
        before = self.results[Job(BEFORE)]
        row: dict[str, Any] = {"arm": arm.name, "stage": stage, "seed": seed}
        for metric in METRICS:
            rate = result.rate(metric)
            if rate is not None:
                row[metric] = rate_json(rate)
        row["task_loss"] = sum(result.responses.nats) / sum(result.responses.tokens)
        if result.language is not None and before.language is not None:
            change, low, high = relative_change(before.language, result.language)
            row["perplexity"] = {
                "value": result.language.value,
                "change": change,
                "interval": [low, high],
            }
        return {**row, "training": dict(result.training), "seconds": result.seconds}

    def _summary(self, arm: Arm, stage: str) -> dict[str, Any]:
        row: dict[str, Any] = {"arm": arm.name, "stage": stage, "seeds": len(self.seeds)}
        for metric in METRICS:
            spread = stage_spread(self.results, arm, stage, self.seeds, metric)
            if spread is not None:
                row[metric] = spread.as_json()
        return row


def robust_tune(
    model: str | None = None,
    *,
    task: Task,
    mask: Path | None = None,
    settings: RobustSettings | None = None,
    output: Path = Path("robust"),
    save_models: bool = False,
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    offline: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> RobustRun:
    """Tune for safety, fine-tune on `task` (see `load_task`), and measure each arm at each stage.

    `mask` None detects one first. Every finished job in `output` that was made in the same way is
    taken up. Raises RequestError and children for what cannot be served, NegativeResult when a
    safety tuning changed nothing, RunFailure when a training fails.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    settings = settings or RobustSettings(Schedule(), Settings())
    settings.check()
    settings.evaluate.chosen(offline)
    check_writable(output, directory=True)
    arms = arms_of(settings.arms, settings.protect)
    pairs = corpora.load_pairs(settings.data, offline=offline, progress=progress)
    # The system message of the refusals is the one that the model must refuse under.
    system = pairs.system if system is None else system
    named = None if mask is None else named_model(load_mask(mask))
    found = identify(ModelChoice(model, backend, dtype, system, offline), named, progress)
    stages = Stages(output)
    common = {
        "backend": backend,
        "dtype": dtype,
        "system": system,
        "offline": offline,
        "progress": progress,
    }
    masks = make_masks(
        settings, arms, mask, found.anatomy, found.description, found.choice.ref, stages, common
    )
    bench = Bench(found, settings, task, masks, stages, save_models, command, progress)
    jobs = list(jobs_of(arms, settings.seeds))
    results: dict[Job, StageResult] = {}
    reused = 0
    for number, (job, arm) in enumerate(jobs, start=1):
        results[job], held = bench.run(job, arm)
        reused += held
        said = "kept from before" if held else f"{results[job].seconds:.0f} s"
        progress.say(f"{number} of {len(jobs)}: {job.name} ({said})")
    run = RobustRun(
        arms,
        results,
        settings,
        {**found.description, "task": task.describe(), "masks": masks.facts},
        output,
        reused,
        time.perf_counter() - started,
        peak_bytes(),
    )
    write_json(output / "report.json", run.as_json())
    return run


def plan_of(settings: RobustSettings, task: str, mask: Path | None, output: Path) -> dict[str, Any]:
    """What would run, for `--dry-run`: no model, no data and no Hub is touched."""
    settings.check()
    arms = arms_of(settings.arms, settings.protect)
    stages = Stages(output)
    jobs = list(jobs_of(arms, settings.seeds))
    return {
        "task": task,
        "mask": "detected first" if mask is None else str(mask),
        "foundation": settings.foundation or "the second corpus of the detection",
        "arms": {arm.name: arm.about for arm in arms},
        "jobs": [
            {
                "job": job.name,
                "does": _does(job, arm, settings),
                # Whether it may be taken up: it is, if it was made with the same settings.
                "on_disk": stages.path(job.name).is_file(),
            }
            for job, arm in jobs
        ],
        "settings": settings.as_json(),
        "directory": str(output),
    }


def _does(job: Job, arm: Arm | None, settings: RobustSettings) -> str:
    if job.stage == BEFORE:
        return "measure the model as it is"
    if job.stage != TASK or arm is None:
        return f"SN-Tune the {job.arm} mask, measure"
    start = "the model" if arm.fine_tuned is None else f"the patch of {arm.tuned}"
    held = ", its neurons protected" if arm.protected else ""
    held += " and rehearsed" if arm.way == "rehearse" else ""
    way = "LoRA" if settings.via == "lora" else "the whole model"
    then = f", put the patch of {arm.tuned} on it" if arm.way == "last" else ""
    return f"fine-tune {way} on the task from {start}{held}{then}, measure"


def _comparison_json(one: Comparison) -> dict[str, Any]:
    return {
        "arm": one.arm,
        "reference": one.reference,
        "metric": one.metric,
        **one.difference.as_json(),
        "null": one.null,
        "seeds": [difference_json(seed) for seed in one.by_seed],
    }


def _kept_json(one: Kept) -> dict[str, Any]:
    rate = None if one.rate is None else rate_json(one.rate)
    return {"arm": one.arm, "rate": rate, "by_seed": [list(pair) for pair in one.by_seed]}
