"""`snt push` and `snt pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snt.cli import options
from snt.cli.output import Output


def push(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Masks, scores files, patch directories and recipes."
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", help="owner/name[@branch]; either is made when missing.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Of the commit.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Share masks, scores, patches and recipes on the Hub, with a card that says what they are."""
    out = Output(as_json, quiet)
    from snt import sharing

    done = sharing.push(files, to, private=private, message=message, progress=out)
    lines = [f"{kind}: {name}" for name, kind in done.kinds.items()]
    out.result(done.as_json(), *lines, f"in {done.repository}, commit {done.commit}", done.url)


def pull(
    source: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="owner/name[@revision] on the Hub.")
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Of its files; default: all that are snt's."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The directory to put them into.")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch masks, scores, patches and recipes that others share; each is checked first."""
    out = Output(as_json, quiet)
    from snt import sharing

    done = sharing.pull(
        source, names or (), output=output, force=force, offline=offline, progress=out
    )
    lines = [f"{path}: {done.kinds[path.name]}, {done.facts[path.name]}" for path in done.files]
    out.result(done.as_json(), *lines, f"from {done.repository} at {done.commit}")
