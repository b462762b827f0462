"""How many replies at once: what the free memory holds of their keys, values and activations."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from snt.backend import LoadedModel

# Beyond these a larger batch gains little; a stopped run loses one batch.
MOST_CPU, MOST_GPU = 128, 256
# Of the free memory; the rest is for logits, copies while rows leave, and other programs. A system
# that promises more memory than it has ends the process rather than refuse, so this errs low.
SHARE = 0.5


def automatic_size(model: LoadedModel, tokens: int) -> int:
    """Replies at once, each of `tokens` with its prompt: 1 to a cap by device."""
    anatomy = model.anatomy
    kept = anatomy.layers * 2 * anatomy.kv_heads * anatomy.head_dim  # keys and values
    # One layer's while the prompt runs; the square is attention that is not fused.
    passing = 3 * anatomy.d_ff + 4 * anatomy.d_model + anatomy.heads * tokens
    row = (kept + passing) * tokens * model.dtype.itemsize
    cap = MOST_CPU if model.device.type == "cpu" else MOST_GPU
    return max(1, min(cap, int(SHARE * free_bytes(model.device)) // row))


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device, a container's limit minded."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has taken and does not use is as good as free.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # psutil carries no types.
    free = int(import_module("psutil").virtual_memory().available)
    return min([free, *_left_in_container(Path("/sys/fs/cgroup"))])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: torch has a class of its own for it on GPUs only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _left_in_container(folder: Path) -> list[int]:
    limit, used = (folder / f"memory.{name}" for name in ("max", "current"))
    if not limit.is_file() or not used.is_file():
        return []
    text = limit.read_text(encoding="ascii").strip()
    return [int(text) - int(used.read_text(encoding="ascii"))] if text.isdigit() else []
