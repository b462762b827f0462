"""`snt tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snt.cli import options
from snt.cli.output import Output


def tune(
    model: options.Model = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Neurons to tune, from `snt detect`.")
    ] = None,
    data: options.Data = "refusals/tune",
    retain: options.Retain = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate; default 0.002.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over --data; default 3.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Pairs in a step; default 8.")
    ] = None,
    retain_batch: Annotated[
        int | None, typer.Option("--retain-batch", help="Prompts to keep in a step; default 24.")
    ] = None,
    retain_weight: Annotated[
        float | None,
        typer.Option("--retain-weight", help="Weight of keeping against refusing; default 8."),
    ] = None,
    positions: Annotated[
        int | None,
        typer.Option("--positions", help="Of an answer to keep, from its first on; default 5."),
    ] = None,
    retain_text: Annotated[
        list[str] | None,
        typer.Option(
            "--retain-text",
            help="Plain texts whose every next word must stay as likely; may be repeated, `none` "
            "for none. Default: prose/tune.",
        ),
    ] = None,
    text_weight: Annotated[
        float | None,
        typer.Option("--text-weight", help="Weight of keeping them; default 8."),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option("--schedule", help="Of the learning rate: linear, cosine or constant."),
    ] = "linear",
    warmup: Annotated[
        float, typer.Option("--warmup", help="Share of all steps in which it rises from 0.")
    ] = 0.0,
    accumulate: Annotated[
        int, typer.Option("--accumulate", help="Batches whose gradients make one step.")
    ] = 1,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute layers again in the backward pass: less memory, half as much time again.",
        ),
    ] = False,
    guard_every: Annotated[
        int,
        typer.Option("--guard-every", help="Steps between points of the curve; 0 for no curve."),
    ] = 50,
    max_over_refusal: Annotated[
        float | None,
        typer.Option(
            "--max-over-refusal",
            help="Stop when a larger share of held-out look-alikes is refused, and keep the best "
            "point before: 0.1.",
        ),
    ] = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            "--report-to", help="tensorboard, wandb or trackio: every step; may be repeated."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The patch directory.")] = Path(
        "patch"
    ),
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure before and after.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of this output.")
    ] = False,
    judge: options.Judges = None,
    new_tokens: options.NewTokens = 48,
    batch_size: options.BatchSize = None,
    limit: options.Limit = None,
    backend: options.Backend = None,
    processes: options.Processes = 1,
    dtype: options.Dtype = "auto",
    system: options.System = None,
    template: options.Template = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a mask's neurons to refuse; write a patch."""
    if mask is None:
        raise typer.BadParameter("give the mask file that `snt detect` wrote", param_hint="--mask")
    out = Output(as_json, quiet)
    options.in_processes(processes, out)
    out.say("loading…")
    from snt.evaluation.judges import DEFAULT_JUDGES, judge_list
    from snt.evaluation.settings import Settings
    from snt.report.tuning import tuning_table
    from snt.training import Schedule
    from snt.tuning import POSITIONS, RETAIN, RETAIN_TEXT
    from snt.tuning import tune as run_tuning

    given: Any = {
        "learning_rate": lr,
        "epochs": epochs,
        "batch": batch,
        "retain_batch": retain_batch,
        "retain_weight": retain_weight,
        "text_weight": text_weight,
        "shape": schedule,
        "warmup": warmup,
        "accumulate": accumulate,
    }
    settings = Settings(
        judges=judge_list(judge or DEFAULT_JUDGES),
        new_tokens=new_tokens,
        batch_size=batch_size,
        limit=limit,
    )
    tuned = run_tuning(
        model,
        mask=mask,
        data=data,
        retain=RETAIN if retain is None else _named(retain),
        retain_text=RETAIN_TEXT if retain_text is None else _named(retain_text),
        positions=POSITIONS if positions is None else positions,
        output=output,
        schedule=Schedule(
            seed=seed, **{name: value for name, value in given.items() if value is not None}
        ),
        evaluate=settings if measure else None,
        resume=resume,
        backend=backend,
        dtype=dtype,
        system=system,
        template=template,
        guard_every=guard_every or None,
        max_over_refusal=max_over_refusal,
        gradient_checkpointing=gradient_checkpointing,
        report_to=_named(report_to or []),
        offline=offline,
        command=options.typed_command(),
        progress=out,
    )
    out.result(tuned.as_json(), *tuning_table(tuned))


def _named(names: list[str]) -> list[str]:
    return [name for name in names if name != "none"]
