"""`snt detect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snt.cli import options
from snt.cli.output import Output


def detect(
    model: options.Model = None,
    corpus: Annotated[
        str, typer.Option("--corpus", help="Prompts to find neurons on: built-in name or file.")
    ] = "harmful/detect",
    against: Annotated[
        str,
        typer.Option("--against", help="Second corpus to tell them from; `none` for none."),
    ] = "harmless/detect",
    importance: Annotated[str, typer.Option("--importance", help="exact.")] = "exact",
    select: options.Select = options.SELECT,
    consistency: options.Consistency = 1.0,
    combine: options.Combine = None,
    select_against: options.SelectAgainst = None,
    at_most: options.AtMost = None,
    kinds: Annotated[str, typer.Option("--kinds", help="Kinds of neurons.")] = "q,k,v,ffn",
    output: Annotated[Path, typer.Option("-o", "--output", help="The mask file.")] = Path(
        "mask.safetensors"
    ),
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="2/3: score that part alone; merge with mask from-scores."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a stopped detection of this output was.")
    ] = False,
    backend: options.Backend = None,
    dtype: options.Dtype = "auto",
    system: options.System = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the neurons of harmful requests; write a mask."""
    out = Output(as_json, quiet)
    out.say("loading…")
    from snt.detection import detect as run_detection
    from snt.detection import detect_shard
    from snt.report.detection import detection_table, shard_lines

    common: Any = {
        "corpus": corpus,
        "against": None if against == "none" else against,
        "importance": importance,
        "kinds": options.names(kinds),
        "output": output,
        "resume": resume,
        "backend": backend,
        "dtype": dtype,
        "system": system,
        "seed": seed,
        "offline": offline,
        "progress": out,
    }
    if shard is not None:
        part = detect_shard(model, shard=shard, **common).as_json()
        out.result(part, *shard_lines(part))
        return
    found = run_detection(
        model,
        select_by=select,
        consistency=consistency,
        combine=combine,
        select_against=select_against,
        at_most=at_most,
        **common,
    )
    out.result(found.as_json(), *detection_table(found.as_json()))
