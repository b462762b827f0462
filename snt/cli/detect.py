"""`snt detect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    select: Annotated[
        str, typer.Option("--select", help="budget=1%, epsilon=0.1 or topk=ffn:64,attn:8.")
    ] = "budget=1%",
    consistency: Annotated[
        float, typer.Option("--consistency", help="Share of prompts on which a rank must hold.")
    ] = 1.0,
    combine: Annotated[
        str | None,
        typer.Option("--combine", help="none, subtract or contrast (default with --against)."),
    ] = None,
    kinds: Annotated[str, typer.Option("--kinds", help="Kinds of neurons.")] = "q,k,v,ffn",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Remove the neurons in memory beside random and matched ones and measure what "
            "changes; exit 3 where the effect is not specific.",
        ),
    ] = False,
    verify_limit: Annotated[
        int | None,
        typer.Option("--verify-limit", help="With --verify: only the first prompts of a corpus."),
    ] = None,
    verify_corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--verify-corpus",
            help="METRIC=CORPUS: other held-out prompts (non_refusal, harmless_refusal, "
            "over_refusal, perplexity); may be repeated.",
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", help="With --verify: random masks to compare with, 5 or more.")
    ] = 5,
    output: Annotated[Path, typer.Option("-o", "--output", help="The mask file.")] = Path(
        "mask.safetensors"
    ),
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
    from snt.report.detection import detection_table
    from snt.report.verification import verification_tables
    from snt.verification_arms import VerifySettings

    given = dict(options.assignment(text, "--verify-corpus") for text in verify_corpus or [])
    found = run_detection(
        model,
        corpus=corpus,
        against=None if against == "none" else against,
        importance=importance,
        select_by=select,
        consistency=consistency,
        combine=combine,
        kinds=[kind.strip() for kind in kinds.split(",") if kind.strip()],
        output=output,
        backend=backend,
        dtype=dtype,
        system=system,
        seed=seed,
        offline=offline,
        verify=VerifySettings(draws, verify_limit, corpora=given) if verify else None,
        progress=out,
    )
    report = found.as_json()
    tables = verification_tables(report["verify"]) if verify else []
    out.result(report, *detection_table(report), *tables)
    if found.verification is not None:
        found.verification.check()
