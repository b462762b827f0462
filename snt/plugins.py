"""Plugins by name, from an entry-point group: built-ins come through the same door as anybody's.

Names come from installed metadata; only the chosen plugin is imported, and one that cannot be used
is told by its name and breaks nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from snt.errors import RequestError, SntError, UnavailableError, unknown_name

# Entry points by name; more than one where two distributions took the same name.
_Installed = dict[str, list[EntryPoint]]


@dataclass(frozen=True)
class Door:
    """A group of plugins: what one of them is called, the parts it must have, and where to read.

    `check` gets an imported plugin and says what else is wrong with it, None for nothing.
    """

    group: str
    what: str
    parts: tuple[str, ...]
    guide: str
    check: Callable[[Any], str | None] = lambda _: None

    def names(self) -> list[str]:
        """Installed plugins, sorted, none of them imported."""
        return sorted(self._installed())

    def get(self, name: str) -> Any:
        """Import the plugin `name`.

        Raises UnknownNameError, RequestError where two have that name, UnavailableError with the
        fault of one that cannot be imported, lacks a part or does not pass `check`.
        """
        return self._load(name, self._installed())

    def every(self) -> Iterator[tuple[str, Any, str]]:
        """Import one after the other by name: the name, the plugin or None, and its fault or ''."""
        installed = self._installed()
        for name in sorted(installed):
            try:
                plugin = self._load(name, installed)
            except SntError as error:
                yield name, None, str(error)
            else:
                yield name, plugin, ""

    def _installed(self) -> _Installed:
        """From the metadata. One distribution found twice on the path counts once."""
        found: _Installed = {}
        for point in entry_points(group=self.group):
            held = found.setdefault(point.name, [])
            if all(other.value != point.value for other in held):
                held.append(point)
        return found

    def _load(self, name: str, installed: _Installed) -> Any:
        if name not in installed:
            hint = "" if installed else f"No {self.what} is installed: install snt again."
            raise unknown_name(self.what, name, installed, hint)
        point, *others = installed[name]
        if others:
            values = " and ".join(one.value for one in installed[name])
            raise RequestError(
                f"two {self.what}s are named {name!r}: {values}; uninstall one of them"
            )
        told = f"{self.what} {name!r} ({point.value})"
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:  # a plugin may fail in any way it likes
            raise UnavailableError(
                f"{told} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        lacking = [part for part in self.parts if not hasattr(plugin, part)]
        if lacking:
            raise UnavailableError(f"{told} has no {', '.join(lacking)}; {self.guide}")
        if fault := self.check(plugin):
            raise UnavailableError(f"{told} {fault}")
        return plugin
