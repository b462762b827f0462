"""How much memory this process has held at most."""

from __future__ import annotations

import ctypes
import gc
import sys


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def release() -> None:
    """Give back what finished work held: models in reference cycles, and the allocator's spare.

    Without it a recipe's steps pile up: the allocator of Linux keeps freed blocks for itself.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
