"""What `snt doctor` found, for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from snt.preflight import gigabytes


def doctor_tables(found: dict[str, Any]) -> list[RenderableType]:
    """Machine, libraries, backends and models of a report of `snt.doctor.examine`."""
    machine = _table("", "name", "memory free", "of")
    for one in found["devices"]:
        machine.add_row(
            one["kind"], Text(one["name"]), gigabytes(one["free"]), gigabytes(one["total"])
        )
    libraries = ", ".join(
        f"{name} {number or '(not installed)'}" for name, number in found["libraries"].items()
    )
    backends = _table("backend", "can", "fault")
    for one in found["backends"]:
        can = ", ".join(one["abilities"]) or "nothing"
        backends.add_row(one["name"], can, Text(one["fault"] or "-"))
    models = _table("model", "parameters", "detect with", "tune with")
    for one in found["models"]:
        size = f"{one['parameters'] / 1e9:.2f} billion"
        models.add_row(one["name"], size, _held(one["detect"]), _held(one["tune"]))
    words = ", ".join(found["instructions"]) or "not known"
    return [
        Text(f"snt {found['snt']}, Python {found['python']}, {found['system']}"),
        Text(f"{found['cores']} cores; instructions: {words}"),
        machine,
        Text(libraries),
        backends,
        models,
    ]


def _held(fitting: dict[str, Any]) -> str:
    if fitting["backend"] is None:
        return "does not fit"
    return f"{fitting['backend']}, {fitting['dtype']}, {gigabytes(fitting['bytes'])}"


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE)
