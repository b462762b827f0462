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
        str | None,
        typer.Option(
            "--corpus",
            help="Prompts to find neurons on: built-in name or FILE[:column]; default: "
            "harmful/detect, with languages multilingual/harmful.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Second corpus to tell them from; `none` for none; default: harmless/detect, "
            "with languages multilingual/harmless.",
            show_default=False,
        ),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            "--languages",
            help="A mask for each, as in en,it,zh,th,vi: columns of both corpora; MASK gets the "
            "language into its name. FILE:en,it after --corpus says the same.",
            show_default=False,
        ),
    ] = None,
    importance: Annotated[
        str, typer.Option("--importance", help="exact, fast, paper or released-code.")
    ] = "exact",
    positions: Annotated[
        str,
        typer.Option(
            "--positions",
            help="Tokens of a prompt that count: all, or last=5: those where the reply is decided.",
        ),
    ] = "all",
    select: options.Select = options.SELECT,
    consistency: options.Consistency = 1.0,
    combine: options.Combine = None,
    select_against: options.SelectAgainst = None,
    at_most: options.AtMost = None,
    kinds: Annotated[str, typer.Option("--kinds", help="Kinds of neurons.")] = "q,k,v,ffn",
    output: Annotated[Path, typer.Option("-o", "--output", help="The mask file.")] = Path(
        "mask.safetensors"
    ),
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
    template: options.Template = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the neurons of harmful requests; write a mask."""
    out = Output(as_json, quiet)
    out.say("loading…")
    from snt import languages as in_languages
    from snt.detection import detect as run_detection
    from snt.detection import detect_shard
    from snt.report.detection import detection_table, languages_report, shard_lines
    from snt.report.verification import verification_tables
    from snt.verification_arms import VerifySettings

    asked, place = in_languages.languages_asked(languages, corpus)
    settings: dict[str, Any] = {
        "importance": importance,
        "positions": positions,
        "kinds": options.names(kinds),
        "output": output,
        "resume": resume,
        "backend": backend,
        "dtype": dtype,
        "system": system,
        "template": template,
        "seed": seed,
        "offline": offline,
        "progress": out,
    }
    if place is not None:
        settings["corpus"] = place
    if against is not None:
        settings["against"] = None if against == "none" else against
    if shard is not None:
        if asked or verify:
            raise typer.BadParameter("a shard makes no mask: leave out --languages and --verify")
        part = detect_shard(model, shard=shard, **settings).as_json()
        out.result(part, *shard_lines(part))
        return
    settings |= {
        "select_by": select,
        "consistency": consistency,
        "combine": combine,
        "select_against": select_against,
        "at_most": at_most,
    }
    if asked:
        if verify:
            raise typer.BadParameter("--verify takes one language; verify each mask on its own")
        several = in_languages.detect_languages(asked, model, **settings)
        out.result(several.as_json(), *languages_report(several))
        return
    given = dict(options.assignment(text, "--verify-corpus") for text in verify_corpus or [])
    settings["verify"] = VerifySettings(draws, verify_limit, corpora=given) if verify else None
    found = run_detection(model, **settings)
    report = found.as_json()
    tables = verification_tables(report["verify"]) if verify else []
    out.result(report, *detection_table(report), *tables)
    if found.verification is not None:
        found.verification.check()
