"""`snt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snt.cli import options
from snt.cli.output import Output


def inspect(
    files: options.Files,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page too: one file, tables and heat maps."),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what masks, scores and patches hold, and how masks overlap."""
    from snt.inspection import inspect_files
    from snt.report.inspection import render
    from snt.report.inspection_page import save_page

    out = Output(as_json, quiet)
    found = inspect_files(files)
    if html is not None:
        save_page(found, html)
        out.say(f"page: {html}")
    out.result(found.as_json(), render(found))
