"""`snt eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snt.cli import options, suite_options
from snt.cli.output import Output

if TYPE_CHECKING:
    from snt.generation import Drawing


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
    judge: options.Judges = None,
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
    seed: options.Seed = 0,
    system: options.System = None,
    template: options.Template = None,
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
        _rejudged(rejudge, judges, output, sample, label_file, labels, seed, offline, out)
        return
    if sample is not None or label_file is not None or labels is not None:
        raise typer.BadParameter(
            "--sample, --label-file and --labels are of saved replies; give them with --rejudge"
        )
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
            drawing=_drawing(temperature, top_p, seed),
        ),
        baseline=baseline,
        base=base,
        deactivate=deactivate,
        compare_with=compare or (),
        check_against=check_against or (),
        force=force,
        fail_if=fail_if or (),
        output=output or Path("evaluation"),
        resume=resume,
        backend=backend,
        dtype=dtype,
        system=system,
        template=template,
        offline=offline,
        progress=out,
    )
    if html is not None:
        write_text(html, found.page.read_text(encoding="utf-8"))
        out.say(f"page: {html}")
    out.result(found.as_json(), *evaluation_table(found))
    found.check()


def _rejudged(
    path: Path,
    judges: tuple[str, ...],
    output: Path | None,
    sample: int | None,
    label_file: Path | None,
    labels: Path | None,
    seed: int,
    offline: bool,
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
        agreed = judge_agreement(path, labels, judges[0], offline)
        out.result(agreed.as_json(), *agreement_table(agreed))
    else:
        found = rejudge_file(path, judges, output, offline)
        out.result(found.as_json(), *rejudged_table(found))


def _drawing(temperature: float | None, top_p: float | None, seed: int) -> Drawing | None:
    from snt.generation import Drawing

    if temperature is None and top_p is None:
        return None
    return Drawing(
        1.0 if temperature is None else temperature, 1.0 if top_p is None else top_p, seed
    )
