"""Which backend holds a model: the one that was named, or the first that fits what there is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snt.backend import Backend, ModelSize, abilities_of, get_backend, weight_bytes
from snt.backend_plugins import backend_names, backends_that
from snt.errors import RequestError, SntError
from snt.preflight import Memory, Work, fits, gigabytes, memory_of, misfit

if TYPE_CHECKING:
    from snt.machine import Device

AUTO = "auto"
# What is tried in turn, as far as it is installed. Ranks are what a detection is for, so there a
# slower exact backend comes before one that rounds; other work would take too long in it.
_EXACT = ("full", "streaming", "int8", "int4")
_OTHER = ("full", "int8", "int4", "streaming")
PROCESSES = "multi-gpu"


@dataclass(frozen=True)
class Option:
    """A backend in a precision, and the memory that the work would take in it."""

    name: str
    backend: Backend
    dtype: str
    memory: Memory

    def __str__(self) -> str:
        return f"--backend {self.name} --dtype {self.dtype} ({gigabytes(self.memory.total)})"


@dataclass(frozen=True)
class Choice:
    """The option that was taken, and why."""

    option: Option
    why: str


def check_abilities(name: str, work: Work) -> Backend:
    """The backend `name`, imported. Raises RequestError where it cannot do what `work` needs.

    Needs no model, so that a request that cannot be served costs no download.
    """
    backend = get_backend(name)
    lacks = [need for need in work.needs if need not in abilities_of(backend)]
    if lacks:
        others = [other for other in backends_that(work.needs) if other != name]
        offer = (
            f"--backend {' or '.join(others)} can"
            if others
            else "no other installed backend can either (`snt backends`)"
        )
        raise RequestError(f"backend {name!r} cannot {', '.join(lacks)}, which this needs; {offer}")
    return backend


def choose(
    model: str,
    size: ModelSize,
    work: Work,
    device: Device,
    *,
    backend: str | None = None,
    dtype: str = AUTO,
    exact: bool = False,
) -> Choice:
    """The backend and precision for `work` on a model of this size.

    `backend` None picks one. Raises RequestError, with what would do, where nothing fits, or where
    the named one does not; SNT_PREFLIGHT=off leaves the memory out of it.
    """
    unchecked = os.environ.get("SNT_PREFLIGHT", "") == "off"
    if backend is not None:
        held = check_abilities(backend, work)
        taken = _option(held, backend, _dtypes(held, dtype, exact)[0], size, work)
        if not unchecked and not fits(taken.memory, device):
            # A setting alone keeps the backend; another backend may keep the setting.
            own = [_option(held, backend, one, size, work) for one in _dtypes(held, AUTO, exact)]
            others = [*own, *_options(size, work, dtype, exact)]
            raise misfit(taken.memory, device, _what(model, taken), _offers(others, device))
        return Choice(taken, "as asked")
    found: list[Option] = []
    for option in _options(size, work, dtype, exact):
        if unchecked or fits(option.memory, device):
            return Choice(option, _why(option, found, device))
        found.append(option)
    if not found:
        raise RequestError(
            f"no installed backend can {', '.join(work.needs)}; `snt backends` says what each can"
        )
    least = min(found, key=lambda one: one.memory.total)
    offers = _offers(_options(size, work, AUTO, exact), device)
    raise misfit(least.memory, device, _what(model, least), offers)


def _options(size: ModelSize, work: Work, dtype: str, exact: bool) -> Iterator[Option]:
    """What can do the work, in the order of preference; imports one after the other."""
    installed = backend_names()
    names: tuple[str, ...] = _EXACT if exact else _OTHER
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and PROCESSES in installed:
        names = (PROCESSES,)
    later: list[Option] = []
    for name in names:
        if name not in installed:
            continue
        try:
            backend = get_backend(name)
            able = set(work.needs) <= abilities_of(backend)
            if not able or getattr(backend, "missing", lambda: None)() is not None:
                continue
            first, *rest = (
                _option(backend, name, one, size, work) for one in _dtypes(backend, dtype, exact)
            )
        except SntError:
            # Listed with its fault by `snt backends`; it can serve nothing.
            continue
        yield first
        if exact:
            later += rest
        else:
            yield from rest
    yield from later


def _dtypes(backend: Backend, dtype: str, exact: bool) -> list[str]:
    """Precisions to try: the one asked for, or float32 first where the result is exact."""
    if dtype != AUTO:
        return [dtype]
    first = "float32" if exact else str(backend.fast_dtype()).removeprefix("torch.")
    return list(dict.fromkeys((first, "bfloat16")))


def _option(backend: Backend, name: str, dtype: str, size: ModelSize, work: Work) -> Option:
    item = 4 if dtype == "float32" else 2
    return Option(
        name, backend, dtype, memory_of(size, work, weight_bytes(backend, size, item), item)
    )


def _offers(options: Iterable[Option], device: Device) -> list[str]:
    """At most three that fit, without saying one twice."""
    return [*dict.fromkeys(str(one) for one in options if fits(one.memory, device))][:3]


def _what(model: str, option: Option) -> str:
    return f"{model} in {option.dtype} by backend {option.name!r}"


def _why(option: Option, passed: list[Option], device: Device) -> str:
    free = f"{gigabytes(device.free)} are free on {device.name}"
    if not passed:
        return f"picked: it fits, {free}"
    first = passed[0]
    needs = f"{first.name} in {first.dtype} would need {gigabytes(first.memory.total)}"
    return f"picked: {needs}, and {free}"
