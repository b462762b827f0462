"""`snt models`, `backends`, `judges` and `doctor`: what can be named, and what runs here."""

from __future__ import annotations

from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from snt.cli.options import Json
from snt.cli.output import Output


def models(as_json: Json = False) -> None:
    """List the model aliases and their Hub ids."""
    from snt.model_refs import ALIASES

    rows = [{"name": a.name, "hub_id": a.hub_id, "note": a.note} for a in ALIASES.values()]
    _show(rows, as_json)


def backends(as_json: Json = False) -> None:
    """List the installed backends, what each can do, and what is wrong with one that cannot."""
    from snt.backend_plugins import list_backends

    table = Table("name", "can", "what it is", box=box.SIMPLE)
    found = list_backends()
    for one in found:
        said = one.summary if one.fault is None else f"{one.summary}\n{one.fault}".strip()
        table.add_row(one.name, ", ".join(one.abilities) or "nothing", Text(said))
    Output(as_json).result([asdict(one) for one in found], table)


def doctor(as_json: Json = False) -> None:
    """Show devices, memory, versions, and which backend holds each model alias here."""
    from snt.doctor import examine
    from snt.report.doctor import doctor_tables

    found = examine()
    Output(as_json).result(found, *doctor_tables(found))


def judges(as_json: Json = False) -> None:
    """List the judges of replies."""
    from snt.evaluation.judges import list_judges

    rows = [
        {"name": one.name, "kind": one.kind, "what it does": one.summary} for one in list_judges()
    ]
    _show(rows, as_json)


def _show(rows: list[dict[str, str]], as_json: bool) -> None:
    table = Table(*rows[0], box=box.SIMPLE) if rows else Table("none")
    for row in rows:
        table.add_row(*row.values())
    Output(as_json).result(rows, table)
