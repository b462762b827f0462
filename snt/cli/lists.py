"""`snt models`, `snt backends` and `snt judges`: what can be named on the command line."""

from __future__ import annotations

from rich import box
from rich.table import Table

from snt.cli.options import Json
from snt.cli.output import Output


def models(as_json: Json = False) -> None:
    """List the model aliases and their Hub ids."""
    from snt.model_refs import ALIASES

    rows = [{"name": a.name, "hub_id": a.hub_id, "note": a.note} for a in ALIASES.values()]
    _show(rows, as_json)


def backends(as_json: Json = False) -> None:
    """List the installed backends."""
    from snt.backend import backend_names

    _show([{"name": name} for name in backend_names()], as_json)


def judges(as_json: Json = False) -> None:
    """List the judges of replies."""
    from snt.errors import UnavailableError
    from snt.evaluation.judges import judge_names, judge_plugin

    rows = []
    for name in judge_names():
        try:
            plugin = judge_plugin(name)
        except UnavailableError as error:
            rows.append({"name": name, "kind": "broken", "what it does": str(error)})
            continue
        kind = "harm" if plugin.scores_harm else "heuristic" if plugin.heuristic else "refusal"
        rows.append({"name": name, "kind": kind, "what it does": plugin.summary})
    _show(rows, as_json)


def _show(rows: list[dict[str, str]], as_json: bool) -> None:
    table = Table(*rows[0], box=box.SIMPLE) if rows else Table("none")
    for row in rows:
        table.add_row(*row.values())
    Output(as_json).result(rows, table)
