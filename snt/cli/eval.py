"""`snt eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snt.cli import options
from snt.cli.output import Output


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
    judge: options.Judge = "refusal",
    new_tokens: options.NewTokens = 48,
    batch_size: options.BatchSize = 64,
    limit: options.Limit = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Report directory, or the file of --rejudge."),
    ] = None,
    backend: options.Backend = None,
    dtype: options.Dtype = "auto",
    system: options.System = None,
    template: options.Template = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure refusals, over-refusals and perplexity."""
    out = Output(as_json, quiet)
    if rejudge is not None:
        _rejudge(rejudge, judge, output, out)
        return
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
        ),
        baseline=baseline,
        base=base,
        deactivate=deactivate,
        output=output or Path("evaluation"),
        backend=backend,
        dtype=dtype,
        system=system,
        template=template,
        offline=offline,
        progress=out,
    )
    out.result(found.as_json(), *evaluation_table(found))


def _rejudge(path: Path, judge: str, output: Path | None, out: Output) -> None:
    from snt.evaluation.completions import read_completions, rejudge, write_completions
    from snt.evaluation.judges import get_judge
    from snt.report.evaluation import labels_table

    chosen = get_judge(judge)
    rows = rejudge(read_completions(path), chosen)
    target = output or path.with_name(f"{path.stem}.{judge}.jsonl")
    write_completions(target, rows)
    found = [str(row.label) for row in rows]
    counts = {label: found.count(label) for label in sorted(set(found))}
    document = {"completions": str(target), "judge": judge, "n": len(rows), "labels": counts}
    out.result(document, labels_table(document))
