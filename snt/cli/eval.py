"""`snt eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snt.cli import options
from snt.cli.output import Output

if TYPE_CHECKING:
    from snt.generation import Drawing


def evaluate(
    model: options.Model = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite", help="safety, over-refusal, capability (perplexity); comma-separated."
        ),
    ] = "safety,over-refusal,capability",
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            help="METRIC=CORPUS: other prompts for a metric (non_refusal, harmless_refusal, "
            "over_refusal, perplexity); may be repeated.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", help="Model to compare with; `base`: the one without patch."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The model of a patch that names a local directory."),
    ] = None,
    deactivate: Annotated[
        Path | None,
        typer.Option("--deactivate", help="A mask whose neurons are removed, in memory only."),
    ] = None,
    rejudge: Annotated[
        Path | None, typer.Option("--rejudge", help="Label saved replies again; needs no model.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            help="With --rejudge: write so many replies, drawn by --seed, for a person to label.",
        ),
    ] = None,
    label_file: Annotated[
        Path | None,
        typer.Option(
            "--label-file",
            help="Where --sample writes; default: beside the replies, ending in .to_label.jsonl.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="With --rejudge: a labelled file; print how far the judge agrees."
        ),
    ] = None,
    judge: options.Judge = "refusal",
    new_tokens: options.NewTokens = 48,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="Draw the replies; default: greedy, or 1 with --top-p."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from the likeliest tokens that reach this share."),
    ] = None,
    batch_size: options.BatchSize = None,
    limit: options.Limit = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up the replies that a stopped run left.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Report directory, or the file of --rejudge."),
    ] = None,
    backend: options.Backend = None,
    dtype: options.Dtype = "auto",
    system: options.System = None,
    seed: options.Seed = 0,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure refusals, over-refusals and perplexity."""
    out = Output(as_json, quiet)
    if rejudge is not None:
        _rejudged(rejudge, judge, output, sample, label_file, labels, seed, out)
        return
    if sample is not None or label_file is not None or labels is not None:
        raise typer.BadParameter(
            "--sample, --label-file and --labels are of saved replies; give them with --rejudge"
        )
    out.say("loading…")
    from snt.evaluation.evaluate import evaluate as run_evaluation
    from snt.evaluation.measurement import Settings
    from snt.report.evaluation import evaluation_table

    given = dict(options.assignment(text, "--corpus") for text in corpus or [])
    found = run_evaluation(
        model,
        settings=Settings(
            suites=tuple(name.strip() for name in suite.split(",") if name.strip()),
            judge=judge,
            new_tokens=new_tokens,
            batch_size=batch_size,
            limit=limit,
            corpora=given,
            drawing=_drawing(temperature, top_p, seed),
        ),
        baseline=baseline,
        base=base,
        deactivate=deactivate,
        output=output or Path("evaluation"),
        resume=resume,
        backend=backend,
        dtype=dtype,
        system=system,
        offline=offline,
        progress=out,
    )
    out.result(found.as_json(), *evaluation_table(found))


def _rejudged(
    path: Path,
    judge: str,
    output: Path | None,
    sample: int | None,
    label_file: Path | None,
    labels: Path | None,
    seed: int,
    out: Output,
) -> None:
    if labels is not None and (sample is not None or label_file is not None):
        raise typer.BadParameter("give --sample to write a file to label, or --labels to read one")
    if label_file is not None and sample is None:
        raise typer.BadParameter(
            "say with --sample how many replies it gets", param_hint="--label-file"
        )
    if output is not None and (sample is not None or labels is not None):
        raise typer.BadParameter(
            "is where --rejudge writes labelled replies; with --sample give --label-file, with "
            "--labels leave it out",
            param_hint="--output",
        )
    from snt.evaluation.labelling import judge_agreement, sample_to_label
    from snt.evaluation.rejudging import rejudge_file
    from snt.report.rejudging import agreement_table, rejudged_table, sample_text

    if sample is not None:
        made = sample_to_label(path, sample, label_file, seed)
        out.result(made.as_json(), *sample_text(made))
    elif labels is not None:
        agreed = judge_agreement(path, labels, judge)
        out.result(agreed.as_json(), *agreement_table(agreed))
    else:
        found = rejudge_file(path, judge, output)
        out.result(found.as_json(), *rejudged_table(found))


def _drawing(temperature: float | None, top_p: float | None, seed: int) -> Drawing | None:
    from snt.generation import Drawing

    if temperature is None and top_p is None:
        return None
    return Drawing(
        1.0 if temperature is None else temperature, 1.0 if top_p is None else top_p, seed
    )
