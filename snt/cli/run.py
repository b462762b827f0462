"""`snt run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snt.cli import options
from snt.cli.output import Output


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a built-in recipe.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and show its steps.")
    ] = False,
    start: Annotated[
        str | None, typer.Option("--from", help="Begin with this step; earlier files are used.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, as in --set tune.epochs=1; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory of the run's files.")
    ] = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a recipe: several steps, one table at the end."""
    out = Output(as_json, quiet)
    from snt.recipes import load_recipe, run_recipe
    from snt.report.recipe import plan_table, recipe_tables

    loaded = load_recipe(recipe, changes or [])
    if dry_run:
        plan = loaded.plan(output)
        out.result(plan, plan_table(plan))
        return
    found = run_recipe(loaded, output=output, start=start, offline=offline, progress=out)
    out.result(found.as_json(), *recipe_tables(found))
    found.check()
