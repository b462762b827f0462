"""Peak memory of a piece of work, in a process of its own (Linux with glibc)."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes above what was resident before, while the work that `prepare` returns runs.

    `prepare` is a function of a module, called in a fresh process, so that nothing that ran before
    has left memory to reuse. It should warm up whatever libraries keep.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_measure, (prepare, arguments)))


def _measure(prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> int:
    work = prepare(*arguments)
    # What the preparation gave back would be used again, and not be counted.
    ctypes.CDLL(None).malloc_trim(0)
    # 5 resets the high-water mark to what is resident now.
    _CLEAR.write_text("5", encoding="ascii")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of this process that the system counts as VmRSS (now) or VmHWM (at most so far)."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}; memory can be measured on Linux only")
