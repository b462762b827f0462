"""Backends by name, from the entry-point group `snt.backends`: built-ins and everybody else's.

Names come from installed metadata; only the chosen backend is imported. Listing imports what each
entry point names, one after the other, and what fails there is told beside its name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from snt.errors import RequestError, SntError, UnavailableError, unknown_name

if TYPE_CHECKING:
    from snt.backend import Backend

GROUP = "snt.backends"


@dataclass(frozen=True)
class ListedBackend:
    """A line of `snt backends`: what the backend says of itself, or what is wrong with it."""

    name: str
    summary: str
    abilities: tuple[str, ...]
    fault: str | None = None


def backend_names() -> list[str]:
    """Installed backends, sorted, none of them imported."""
    return sorted(_installed())


def get_backend(name: str) -> Backend:
    """Import the backend `name`.

    Raises UnknownNameError, RequestError where two have that name, UnavailableError with the fault
    of one that cannot be imported or lacks a part.
    """
    return _chosen(name, _installed())


def list_backends() -> list[ListedBackend]:
    """Every installed backend, sorted by name; one that cannot be used with its fault."""
    from snt.backend import ABILITIES, abilities_of

    installed = _installed()
    found = []
    for name in sorted(installed):
        try:
            backend = _chosen(name, installed)
            can = abilities_of(backend)
            missing = getattr(backend, "missing", lambda: None)()
            fault = missing and f"not installed: {missing}"
            abilities = tuple(one for one in ABILITIES if one in can)
            found.append(ListedBackend(name, str(backend.summary), abilities, fault))
        except SntError as error:
            found.append(ListedBackend(name, "", (), str(error)))
    return found


def backends_that(needs: Collection[str]) -> list[str]:
    """Names of the usable backends that can do all of `needs`."""
    return [
        one.name for one in list_backends() if one.fault is None and set(needs) <= {*one.abilities}
    ]


def _chosen(name: str, installed: dict[str, list[EntryPoint]]) -> Backend:
    if name not in installed:
        raise unknown_name("backend", name, installed)
    points = installed[name]
    if len(points) > 1:
        raise RequestError(
            f"two backends are named {name!r}: "
            f"{' and '.join(point.value for point in points)}; uninstall one of them"
        )
    return _imported(points[0])


def _imported(point: EntryPoint) -> Backend:
    from snt.backend import ABILITIES, abilities_of

    try:
        backend: Backend = point.load()
    except (Exception, SystemExit) as error:  # a plugin may fail in any way it likes
        raise UnavailableError(
            f"backend {point.name!r} ({point.value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    lacks = [part for part in ("summary", "load", "fast_dtype") if not hasattr(backend, part)]
    if lacks:
        raise UnavailableError(
            f"backend {point.name!r} ({point.value}) has no {', '.join(lacks)}; "
            "docs/writing-a-backend.md says what a backend is"
        )
    strange = abilities_of(backend) - ABILITIES.keys()
    if strange:
        raise UnavailableError(
            f"backend {point.name!r} ({point.value}) names abilities that there are not: "
            f"{', '.join(sorted(strange))}; known: {', '.join(ABILITIES)}"
        )
    return backend


def _installed() -> dict[str, list[EntryPoint]]:
    """Entry points by name. One distribution found twice on the path counts once."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        held = found.setdefault(point.name, [])
        if all(other.value != point.value for other in held):
            held.append(point)
    return found
