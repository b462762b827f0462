"""The door for backends, the entry-point group `snt.backends`, and what each can do here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from snt.plugins import Door

if TYPE_CHECKING:
    from snt.backend import Backend


@dataclass(frozen=True)
class ListedBackend:
    """A line of `snt backends`: what the backend says of itself, or what is wrong with it."""

    name: str
    summary: str
    abilities: tuple[str, ...]
    fault: str | None = None


def backend_names() -> list[str]:
    """Installed backends, sorted, none of them imported."""
    return DOOR.names()


def get_backend(name: str) -> Backend:
    """Import the backend `name`. Raises as `Door.get` does."""
    return cast("Backend", DOOR.get(name))


def list_backends() -> list[ListedBackend]:
    """Every installed backend, sorted by name; one that cannot be used with its fault."""
    from snt.backend import ABILITIES, abilities_of

    found = []
    for name, backend, fault in DOOR.every():
        if fault:
            found.append(ListedBackend(name, "", (), fault))
            continue
        can = abilities_of(backend)
        missing = getattr(backend, "missing", lambda: None)()
        lacks = missing and f"not installed: {missing}"
        abilities = tuple(one for one in ABILITIES if one in can)
        found.append(ListedBackend(name, str(backend.summary), abilities, lacks))
    return found


def backends_that(needs: Collection[str]) -> list[str]:
    """Names of the usable backends that can do all of `needs`."""
    return [
        one.name for one in list_backends() if one.fault is None and set(needs) <= {*one.abilities}
    ]


def _strange(backend: Backend) -> str | None:
    from snt.backend import ABILITIES, abilities_of

    strange = sorted(abilities_of(backend) - ABILITIES.keys())
    known = f"known: {', '.join(ABILITIES)}"
    return f"names abilities that there are not: {', '.join(strange)}; {known}" if strange else None


DOOR = Door(
    "snt.backends",
    "backend",
    ("summary", "load", "fast_dtype"),
    "docs/writing-a-backend.md says what a backend is",
    _strange,
)
