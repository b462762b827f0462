"""`snt tune`."""

from __future__ import annotations

import shlex
import sys
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
    data: Annotated[
        str, typer.Option("--data", help="Requests and their refusals: built-in name or file.")
    ] = "refusals/tune",
    retain: Annotated[
        list[str] | None,
        typer.Option(
            "--retain",
            help="Prompts whose answers must stay; may be repeated, `none` for none. "
            "Default: harmless/tune and lookalike/tune.",
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate; default 0.002.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over --data; default 4.")
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
    dtype: options.Dtype = "auto",
    system: options.System = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a mask's neurons to refuse; write a patch."""
    if mask is None:
        raise typer.BadParameter("give the mask file that `snt detect` wrote", param_hint="--mask")
    out = Output(as_json, quiet)
    out.say("loading…")
    from snt.evaluation.judges import DEFAULT_JUDGES, judge_list
    from snt.evaluation.settings import Settings
    from snt.report.tuning import tuning_table
    from snt.training import Schedule
    from snt.tuning import RETAIN
    from snt.tuning import tune as run_tuning

    given: Any = {
        "learning_rate": lr,
        "epochs": epochs,
        "batch": batch,
        "retain_batch": retain_batch,
        "retain_weight": retain_weight,
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
        retain=RETAIN if retain is None else [name for name in retain if name != "none"],
        output=output,
        schedule=Schedule(
            seed=seed, **{name: value for name, value in given.items() if value is not None}
        ),
        evaluate=settings if measure else None,
        resume=resume,
        backend=backend,
        dtype=dtype,
        system=system,
        offline=offline,
        command=shlex.join(["snt", *map(_without_folder, sys.argv[1:])]),
        progress=out,
    )
    out.result(tuned.as_json(), *tuning_table(tuned))


def _without_folder(word: str) -> str:
    """A patch is shared: its record of the command must not tell where things lie here."""
    return Path(word).name if word.startswith(("/", "~")) else word
