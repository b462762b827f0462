"""`snt robust-tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snt.cli import options
from snt.cli.output import Output

ARMS = "undefended,sn,rsn,rsn-freeze,random"


def robust_tune(
    model: options.Model = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="gsm8k (from the Hub), arithmetic (built in), hf:ID, or a file of pairs."
        ),
    ] = None,
    task_eval: Annotated[
        str | None,
        typer.Option("--task-eval", help="Rows to be judged by; default: some of --task held out."),
    ] = None,
    task_answer: Annotated[
        str | None,
        typer.Option(
            "--task-answer",
            help="Column of the expected answer: exact match. Default: the number after ####, else "
            "the loss.",
        ),
    ] = None,
    task_train_limit: Annotated[
        int | None, typer.Option("--task-train-limit", help="Rows to train on, drawn.")
    ] = None,
    task_eval_limit: Annotated[
        int | None, typer.Option("--task-eval-limit", help="Rows to be judged by, drawn.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Safety neurons; default: detected first.")
    ] = None,
    foundation: Annotated[
        str | None,
        typer.Option(
            "--foundation",
            help="Mask or corpus of the foundation neurons; default: the second corpus of the "
            "detection.",
        ),
    ] = None,
    foundation_select: Annotated[
        str,
        typer.Option("--foundation-select", help="How foundation neurons are cut from scores."),
    ] = "budget=5%",
    protect: Annotated[
        str,
        typer.Option(
            "--protect",
            help="freeze: neurons tuned before the task keep every bit in it. rehearse: they take "
            "steps of the safety tuning between its steps.",
        ),
    ] = "none",
    rehearse_every: Annotated[
        int, typer.Option("--rehearse-every", help="Steps of the task between two rehearsals.")
    ] = 2,
    rehearse_lr: Annotated[
        float, typer.Option("--rehearse-lr", help="Learning rate of the rehearsals.")
    ] = 1e-3,
    last_scale: Annotated[
        float, typer.Option("--last-scale", help="0 to 2: times the patches that are put on last.")
    ] = 1.0,
    via: Annotated[str, typer.Option("--via", help="full or lora: what the task trains.")] = "full",
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Some of undefended, sn, rsn, random; after a tuned one's name -freeze, -rehearse "
            "(see --protect) or -last (the task first, then the patch).",
        ),
    ] = ARMS,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds with commas between.")] = "0",
    data: options.Data = "refusals/tune",
    retain: options.Retain = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate of the safety tuning.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes of the safety tuning over --data.")
    ] = None,
    task_lr: Annotated[
        float | None,
        typer.Option("--task-lr", help="Learning rate of the task; default 2e-5, LoRA 2e-4."),
    ] = None,
    task_epochs: Annotated[
        float, typer.Option("--task-epochs", help="Passes over the task's rows.")
    ] = 3.0,
    task_batch: Annotated[int, typer.Option("--task-batch", help="Rows of the task a step.")] = 16,
    task_rows: Annotated[
        int, typer.Option("--task-rows", help="Rows that go through the model at once.")
    ] = 4,
    task_longest: Annotated[
        int, typer.Option("--task-longest", help="Tokens of a row that are used.")
    ] = 512,
    task_tokens: Annotated[
        int, typer.Option("--task-tokens", help="Longest reply to a task's prompt, in tokens.")
    ] = 256,
    lora_rank: Annotated[int, typer.Option("--lora-rank", help="Rank with --via lora.")] = 16,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory of the run; finished jobs are kept.")
    ] = Path("robust"),
    save_models: Annotated[
        bool, typer.Option("--save-models", help="Write the fine-tuned models as well.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the options, print the plan, run nothing.")
    ] = False,
    judge: options.Judges = None,
    new_tokens: options.NewTokens = 48,
    batch_size: options.BatchSize = None,
    limit: options.Limit = None,
    backend: options.Backend = None,
    dtype: options.Dtype = "auto",
    system: options.System = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a later fine-tune leaves of a safety tuning."""
    if task is None:
        raise typer.BadParameter(
            "give gsm8k, arithmetic or a file of training pairs", param_hint="--task"
        )
    numbers = _numbers(seeds)
    out = Output(as_json, quiet)
    from snt.evaluation.judges import DEFAULT_JUDGES, judge_list
    from snt.evaluation.settings import Settings
    from snt.report.robust import plan_tables, robust_tables
    from snt.robust.settings import RobustSettings, TaskSchedule
    from snt.robust.workflow import plan_of
    from snt.robust.workflow import robust_tune as run
    from snt.training import Schedule

    given: Any = {"learning_rate": lr, "epochs": epochs}
    chosen: Any = {"protect": protect, "via": via}
    chosen |= {"rehearse_every": rehearse_every, "rehearse_rate": rehearse_lr}
    chosen["last_scale"] = last_scale
    if retain is not None:
        chosen["retain"] = tuple(name for name in retain if name != "none")
    settings = RobustSettings(
        tuning=Schedule(**{name: value for name, value in given.items() if value is not None}),
        evaluate=Settings(
            judges=judge_list(judge or DEFAULT_JUDGES),
            new_tokens=new_tokens,
            batch_size=batch_size,
            limit=limit,
        ),
        arms=tuple(options.names(arms)),
        seeds=numbers,
        foundation=foundation,
        foundation_select=foundation_select,
        data=data,
        task=TaskSchedule(
            epochs=task_epochs,
            learning_rate=task_lr,
            batch=task_batch,
            rows_at_once=task_rows,
            longest=task_longest,
            rank=lora_rank,
        ),
        task_tokens=task_tokens,
        **chosen,
    )
    if dry_run:
        plan = plan_of(settings, task, mask, output)
        out.result(plan, *plan_tables(plan))
        return
    from snt.robust.task_data import load_task

    settings.check()
    loaded = load_task(
        task,
        evaluation=task_eval,
        answer=task_answer,
        train_limit=task_train_limit,
        evaluation_limit=task_eval_limit,
        offline=offline,
        progress=out,
    )
    found = run(
        model,
        task=loaded,
        mask=mask,
        settings=settings,
        output=output,
        save_models=save_models,
        backend=backend,
        dtype=dtype,
        system=system,
        offline=offline,
        command=options.typed_command(),
        progress=out,
    )
    out.result(found.as_json(), *robust_tables(found))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in options.names(text))
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} are no whole numbers, as in 0,1,2", param_hint="--seeds"
        ) from error
