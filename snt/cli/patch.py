"""`snt patch apply` and `snt patch revert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snt.cli import options
from snt.cli.output import Output

patch_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Merge a patch into a model, or take it out.",
)
Directory = Annotated[Path, typer.Option("-o", "--output", help="The directory to write.")]


@patch_app.command()
def apply(
    patch: Annotated[Path, typer.Argument(metavar="PATCH_DIR", help="What `snt tune` wrote.")],
    output: Directory,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The base model, when not the one that the patch names."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Apply to other weights of the same shape.")
    ] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the merged model: a directory that plain transformers loads."""
    out = Output(as_json, quiet)
    from snt.patching import apply as run_apply
    from snt.report.patching import apply_table

    report = run_apply(patch, output, model=model, force=force, offline=offline, progress=out)
    out.result(report, apply_table(report))


@patch_app.command()
def revert(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="What `apply` wrote.")],
    output: Directory,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the model as it was before a patch, bit for bit."""
    out = Output(as_json, quiet)
    from snt.patching import revert as run_revert
    from snt.report.patching import revert_table

    report = run_revert(model, output)
    out.result(report, revert_table(report))
