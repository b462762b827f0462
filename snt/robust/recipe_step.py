"""The `robust-tune` step of a recipe as a call of `robust_tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snt.evaluation.judges import judge_list
from snt.evaluation.settings import Settings
from snt.recipe_schema import Recipe, RobustStep, given_schedule
from snt.robust.settings import RobustSettings, TaskSchedule
from snt.robust.task_data import load_task
from snt.robust.workflow import RobustRun, robust_tune
from snt.training import Schedule


def run_step(
    recipe: Recipe, mask: Path | None, directory: Path, common: dict[str, Any]
) -> RobustRun:
    """Run the step into `directory`; `mask` is that of the recipe's own detection, if it has one.

    Raises as `load_task` and `robust_tune` do.
    """
    step = recipe.robust_tune or RobustStep()
    settings = settings_of(step)
    settings.check()
    task = load_task(
        step.task,
        evaluation=step.task_eval,
        answer=step.task_answer,
        train_limit=step.task_train_limit,
        evaluation_limit=step.task_eval_limit,
        seed=recipe.seed,
        offline=common["offline"],
        progress=common["progress"],
    )
    return robust_tune(
        recipe.model,
        task=task,
        mask=Path(step.mask) if step.mask else mask,
        settings=settings,
        output=directory,
        save_models=step.save_models,
        command=f"snt run {recipe.name}",
        **common,
    )


def settings_of(step: RobustStep) -> RobustSettings:
    """What a step says, its schedules' gaps filled with their defaults."""
    return RobustSettings(
        tuning=Schedule(**given_schedule(step)),
        evaluate=Settings(
            judges=judge_list([step.judge]),
            new_tokens=step.new_tokens,
            batch_size=step.batch_size,
            limit=step.limit,
            corpora=step.corpora,
        ),
        arms=step.arms,
        seeds=step.seeds,
        protect=step.protect,
        rehearse_every=step.rehearse_every,
        rehearse_rate=step.rehearse_lr,
        last_scale=step.last_scale,
        via=step.via,
        foundation=step.foundation,
        foundation_select=step.foundation_select,
        data=step.data,
        retain=step.retain,
        task=TaskSchedule(
            epochs=step.task_epochs,
            learning_rate=step.task_lr,
            batch=step.task_batch,
            rows_at_once=step.task_rows,
            longest=step.task_longest,
            rank=step.lora_rank,
        ),
        task_tokens=step.task_tokens,
    )
