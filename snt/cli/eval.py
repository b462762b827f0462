"""`snt eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snt.cli import options, suite_options
from snt.cli.output import Output


def evaluate(
    model: options.Model = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            help="safety, over-refusal, capability, multilingual, jailbreak; comma-separated.",
        ),
    ] = "safety,over-refusal,capability",
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            help="METRIC=CORPUS: other prompts for a metric (non_refusal, harmless_refusal, "
            "over_refusal, perplexity…), or METRIC=none; may be repeated.",
        ),
    ] = None,
    tasks: suite_options.Tasks = None,
    num_fewshot: suite_options.FewShot = None,
    task_limit: suite_options.TaskLimit = None,
    apply_chat_template: suite_options.TaskTemplate = False,
    task_batch_size: suite_options.TaskBatch = 8,
    languages: suite_options.Languages = None,
    templates: suite_options.Templates = None,
    test_cases: suite_options.TestCases = None,
    gcg_steps: suite_options.GcgSteps = None,
    gcg_prompts: suite_options.GcgPrompts = 4,
    gcg_width: suite_options.GcgWidth = 128,
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
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            help="[NAME=]MODEL: a further model or patch, on the same prompts; may be repeated.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            help="A gate: [difference.]METRIC[.low|.high] OP NUMBER, as in 'over_refusal > 0.1'; "
            "exit 3 where it holds; may be repeated.",
        ),
    ] = None,
    check_against: Annotated[
        list[str] | None,
        typer.Option(
            "--check-against",
            help="A corpus that the model was made from and that snt cannot find by its name: "
            "near-duplicates of it among the prompts are looked for; may be repeated.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure on near-duplicates of what was trained on.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="The page elsewhere too; it is in the report directory."),
    ] = None,
    rejudge: Annotated[
        Path | None, typer.Option("--rejudge", help="Label saved replies again; needs no model.")
    ] = None,
    judge: options.Judges = None,
    new_tokens: options.NewTokens = 48,
    batch_size: options.BatchSize = 64,
    limit: options.Limit = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Report directory, or the file of --rejudge."),
    ] = None,
    backend: options.Backend = None,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    system: options.System = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure refusals, over-refusals, capability, languages and jailbreaks."""
    out = Output(as_json, quiet)
    from snt.evaluation.judges import DEFAULT_JUDGES, judge_list

    judges = judge_list(judge or DEFAULT_JUDGES)
    if rejudge is not None:
        given_too = {"--compare": compare, "--fail-if": fail_if, "--check-against": check_against,
                     "--html": html, "--force": force}  # fmt: skip
        for option, value in given_too.items():
            if value:
                raise typer.BadParameter(f"{option} is of no use to --rejudge; leave it out")
        _rejudge(rejudge, judges, output, offline, out)
        return
    out.say("loading…")
    from snt.atomic import check_writable, write_text
    from snt.evaluation.evaluate import evaluate as run_evaluation
    from snt.evaluation.settings import Settings
    from snt.report.evaluation import evaluation_table

    if html is not None:
        check_writable(html)
    given = dict(options.assignment(text, "--corpus") for text in corpus or [])
    found = run_evaluation(
        model,
        settings=Settings(
            suites=tuple(options.names(suite)),
            judges=judges,
            new_tokens=new_tokens,
            batch_size=batch_size,
            limit=limit,
            corpora=given,
            languages=tuple(options.names(languages or "")),
            tasks=suite_options.task_settings(
                tasks,
                few_shot=num_fewshot,
                limit=task_limit,
                chat_template=apply_chat_template,
                batch_size=task_batch_size,
                seed=seed,
            ),
            jailbreak=suite_options.jailbreak_settings(
                templates, test_cases, gcg_steps, prompts=gcg_prompts, width=gcg_width, seed=seed
            ),
        ),
        baseline=baseline,
        base=base,
        deactivate=deactivate,
        compare_with=compare or (),
        check_against=check_against or (),
        force=force,
        fail_if=fail_if or (),
        output=output or Path("evaluation"),
        backend=backend,
        dtype=dtype,
        system=system,
        offline=offline,
        progress=out,
    )
    if html is not None:
        write_text(html, found.page.read_text(encoding="utf-8"))
        out.say(f"page: {html}")
    out.result(found.as_json(), *evaluation_table(found))
    found.check()


def _rejudge(
    path: Path, judges: tuple[str, ...], output: Path | None, offline: bool, out: Output
) -> None:
    from snt.evaluation.completions import (
        labels_document,
        read_completions,
        rejudge,
        write_completions,
    )
    from snt.evaluation.judges import get_judge
    from snt.report.evaluation import labels_table

    opened = [get_judge(name, offline=offline) for name in judges]
    rows = rejudge(read_completions(path), *opened)
    target = output or path.with_name(f"{path.stem}.{judges[0].partition(':')[0]}.jsonl")
    write_completions(target, rows)
    document = {"completions": str(target), **labels_document(rows, opened)}
    out.result(document, labels_table(document))
