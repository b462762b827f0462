"""Options that several commands share, spelled once."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from snt.cli.output import Output
from snt.places import without_place

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Alias, Hub id[@revision] or directory; left out: the one a file names, else "
        "$SNT_MODEL, else smollm2-135m.",
        show_default=False,
    ),
]
Data = Annotated[
    str, typer.Option("--data", help="Requests and their refusals: built-in name or file.")
]
Retain = Annotated[
    list[str] | None,
    typer.Option(
        "--retain",
        help="Prompts whose answers must stay; may be repeated, `none` for none. "
        "Default: harmless/tune and lookalike/tune.",
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
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="plain, or a file with a Jinja chat template; default: the model's own, plain text "
        "for a base model without one.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not ask the Hub.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no messages.")]
Judges = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="Who labels the replies (`snt judges`), several with commas or repeated: the first "
        "one's labels count. Default: refusal,prefix.",
        show_default=False,
    ),
]
NewTokens = Annotated[int, typer.Option("--new-tokens", help="Longest reply, in tokens.")]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Prompts answered at once; default: what the memory holds."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Only the first prompts of each corpus: a quick look.")
]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Masks, scores, patches.")]
SELECT = "budget=1%"
Select = Annotated[
    str, typer.Option("--select", help="budget=1%, epsilon=0.1 or topk=ffn:64,attn:8.")
]
SelectAgainst = Annotated[
    str | None,
    typer.Option(
        "--select-against",
        help="What --combine subtract takes away of the second corpus; default: as --select.",
    ),
]
Consistency = Annotated[
    float, typer.Option("--consistency", help="Share of prompts on which a rank must hold.")
]
Combine = Annotated[
    str | None,
    typer.Option("--combine", help="none, subtract or contrast (default with --against)."),
]
AtMost = Annotated[
    str | None,
    typer.Option(
        "--at-most",
        help="Limits by kind and for any one layer, as numbers or shares: ffn=0.5%,q=200,layer=3%.",
    ),
]

Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        help="Share the work among so many processes on this machine, one a GPU where there are "
        "any; --backend multi-gpu (the default then), or fsdp for a model beyond one device.",
    ),
]


def in_processes(count: int, out: Output) -> None:
    """Run this command in `count` processes, unless this is one of them, and end with its code.

    Raises RequestError for a count out of range or other than that of whoever started this one.
    """
    from snt.cli import INTERRUPTED, Interrupted
    from snt.errors import RequestError
    from snt.launching import launch, this_command
    from snt.processes import world

    here = world()
    if here.size > 1 and count not in (1, here.size):
        raise RequestError(
            f"--processes {count} in one of {here.size} processes; leave it out, or start the "
            "command once"
        )
    if here.size == 1 and count != 1:
        # Whatever ends this process ends all of them.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
        try:
            raise typer.Exit(launch(this_command(), count, out.say))
        except Interrupted:
            # The process that leads has said so.
            raise typer.Exit(INTERRUPTED) from None


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def assignment(text: str, option: str) -> tuple[str, str]:
    """`METRIC=CORPUS` of an option that may be repeated. Raises BadParameter (exit 2)."""
    metric, equals, corpus = text.partition("=")
    if not equals or not metric or not corpus:
        raise typer.BadParameter(f"{text!r} is not METRIC=CORPUS", param_hint=option)
    return metric, corpus


def typed_command() -> str:
    """The command as it was typed, less where things lie here: what it made may be shared."""
    return shlex.join(["snt", *map(without_place, sys.argv[1:])])
