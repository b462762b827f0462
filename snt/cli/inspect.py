"""`snt inspect`."""

from __future__ import annotations

from snt.cli import options
from snt.cli.output import Output


def inspect(
    files: options.Files, as_json: options.Json = False, quiet: options.Quiet = False
) -> None:
    """Show what masks, scores and patches hold."""
    from snt.inspection import inspect_files
    from snt.report.inspection import render

    found = inspect_files(files)
    Output(as_json, quiet).result(found.as_json(), render(found))
