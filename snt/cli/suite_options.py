"""Options of `snt eval` that say what its suites are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from snt.cli.options import names

if TYPE_CHECKING:
    from snt.evaluation.harness import TaskSettings
    from snt.evaluation.jailbreaks import JailbreakSettings

Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help="lm-evaluation-harness tasks for `capability`: names (arc_easy,gsm8k), YAML files, "
        "folders.",
    ),
]
FewShot = Annotated[
    int | None, typer.Option("--num-fewshot", help="Examples before each question of a task.")
]
TaskLimit = Annotated[
    int | None,
    typer.Option("--task-limit", help="Questions of each task, drawn with --seed; default: all."),
]
TaskTemplate = Annotated[
    bool,
    typer.Option("--apply-chat-template", help="Ask tasks through the model's chat template."),
]
TaskBatch = Annotated[
    int, typer.Option("--task-batch-size", help="Requests of a task that run at once.")
]
Languages = Annotated[
    str | None,
    typer.Option(
        "--languages", help="Columns for `multilingual`; default: en,it,zh,th,vi of its corpora."
    ),
]
Templates = Annotated[
    str | None,
    typer.Option(
        "--templates",
        help="FILE[:column] of `jailbreak` templates, each with {prompt} or [INSERT PROMPT HERE].",
    ),
]
TestCases = Annotated[
    str | None, typer.Option("--test-cases", help="HarmBench test_cases.json for `jailbreak`.")
]
GcgSteps = Annotated[
    int | None,
    typer.Option("--gcg-steps", help="Search suffixes against this model, with so many steps."),
]
GcgPrompts = Annotated[
    int, typer.Option("--gcg-prompts", help="Requests that a suffix is searched for.")
]
GcgWidth = Annotated[int, typer.Option("--gcg-width", help="Candidates in each step.")]


def task_settings(tasks: str | None, **given: Any) -> TaskSettings | None:
    """What `--tasks` and its companions say; None without `--tasks`."""
    if tasks is None:
        return None
    from snt.evaluation.harness import TaskSettings

    return TaskSettings(tuple(names(tasks)), **given)


def jailbreak_settings(
    templates: str | None, test_cases: str | None, steps: int | None, **budget: int
) -> JailbreakSettings:
    """What `--templates`, `--test-cases` and `--gcg-steps` say."""
    from snt.evaluation.gcg import GcgSettings
    from snt.evaluation.jailbreaks import JailbreakSettings

    gcg = None if steps is None else GcgSettings(steps, **budget)
    return JailbreakSettings(templates, test_cases, gcg)
