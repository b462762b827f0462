"""The commands of `snt`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, measure and strengthen the neurons that carry a language model's refusals.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
def models(as_json: Json = False) -> None:
    """List the model aliases and their Hub ids."""
    from snt.model_refs import ALIASES

    rows = [{"name": a.name, "hub_id": a.hub_id, "note": a.note} for a in ALIASES.values()]
    _show(rows, as_json)


@app.command()
def backends(as_json: Json = False) -> None:
    """List the installed backends; none of them is imported."""
    from snt.backend import backend_names

    _show([{"name": name} for name in backend_names()], as_json)


def _show(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2, sort_keys=True))
        return
    table = Table(*rows[0]) if rows else Table("none")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
