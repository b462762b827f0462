"""Options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Alias, Hub id[@revision] or directory; left out: the one a file names, else "
        "$SNT_MODEL, else smollm2-135m.",
        show_default=False,
    ),
]
Backend = Annotated[
    str | None, typer.Option("--backend", help="What holds the weights (`snt backends`).")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.", show_default=True)
]
System = Annotated[
    str | None, typer.Option("--system", help="System prompt; default: the chat template's own.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not ask the Hub.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no messages.")]
Judge = Annotated[str, typer.Option("--judge", help="refusal, prefix or keyword.")]
NewTokens = Annotated[int, typer.Option("--new-tokens", help="Longest reply, in tokens.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Prompts answered at once.")]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Only the first prompts of each corpus: a quick look.")
]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Masks, scores, patches.")]


def assignment(text: str, option: str) -> tuple[str, str]:
    """`METRIC=CORPUS` of an option that may be repeated. Raises BadParameter (exit 2)."""
    metric, equals, corpus = text.partition("=")
    if not equals or not metric or not corpus:
        raise typer.BadParameter(f"{text!r} is not METRIC=CORPUS", param_hint=option)
    return metric, corpus
