"""What this machine has: processor, free memory, devices, and how fast it multiplies."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Instructions that matter here, as /proc/cpuinfo names them.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Device:
    """A place that can hold a model. Memory in bytes; `kind` is cpu or cuda."""

    kind: str
    name: str
    free: int
    total: int


def devices() -> list[Device]:
    """Every device, those that a model is put on first at the front."""
    import torch

    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        found.append(Device("cuda", torch.cuda.get_device_name(number), free, total))
    return [*found, processor()]


def processor() -> Device:
    """The processor and its memory, a container's limit minded."""
    memory = import_module("psutil").virtual_memory()  # carries no types
    free, total = int(memory.available), int(memory.total)
    limit = container_memory(Path("/sys/fs/cgroup"))
    if limit is not None:
        free, total = min(free, limit[0]), min(total, limit[1])
    return Device("cpu", _processor_name(), free, total)


def container_memory(folder: Path) -> tuple[int, int] | None:
    """(free, limit) in bytes of a control group, None where it has no limit.

    Files that were read count as used there, and give way as soon as memory is asked for.
    """
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    kept = dict(line.split(" ", 1) for line in lines if " " in line)
    gives_way = int(kept.get("inactive_file", 0)) + int(kept.get("active_file", 0))
    return max(0, int(limit) - used + gives_way), int(limit)


def instructions() -> list[str]:
    """Which instructions that matter here the processor has; empty where it does not tell."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return []
    for line in facts.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            words = set(line.split())
            return [flag for flag in _FLAGS if flag in words]
    return []


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def matmul_rate(device: str, dtype: torch.dtype, rows: int, d_in: int, d_out: int) -> float:
    """Floating-point operations a second of (rows, d_in) · (d_in, d_out), measured in a moment."""
    import torch

    left = torch.ones(rows, d_in, device=device, dtype=dtype)
    right = torch.ones(d_out, d_in, device=device, dtype=dtype).mT

    def seconds() -> float:
        started = time.perf_counter()
        # Reading an entry back waits for the device.
        float((left @ right)[0, 0])
        return time.perf_counter() - started

    # The first product loads the kernels.
    seconds()
    return 2.0 * rows * d_in * d_out / min(seconds(), seconds(), seconds())


def _processor_name() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
