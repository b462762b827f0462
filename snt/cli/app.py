"""The application: every command registered, one file each."""

from __future__ import annotations

from typing import Annotated

import typer

from snt.cli.detect import detect
from snt.cli.eval import evaluate
from snt.cli.inspect import inspect
from snt.cli.lists import backends, doctor, judges, models
from snt.cli.mask import mask_app
from snt.cli.patch import patch_app
from snt.cli.robust_tune import robust_tune
from snt.cli.run import run
from snt.cli.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find, measure and strengthen the neurons that carry a language model's refusals.",
)
app.command()(detect)
app.command()(tune)
app.command("robust-tune")(robust_tune)
app.command("eval")(evaluate)
app.command()(inspect)
app.command()(run)
app.add_typer(mask_app, name="mask")
app.add_typer(patch_app, name="patch")
app.command()(models)
app.command()(backends)
app.command()(judges)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from snt import __version__

        typer.echo(f"snt {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Find, measure and strengthen the neurons that carry a language model's refusals."""
