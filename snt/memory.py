"""How much memory this process has held at most."""

from __future__ import annotations

import sys


def peak_bytes() -> int:
    """Peak resident memory of this process, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
