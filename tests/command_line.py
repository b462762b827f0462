"""The command line run in this process, for tests of commands."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def snt(*words: str, at: Path) -> Done:
    """Run the command line in this process, in a folder, as `snt` would."""
    from snt.cli import main

    out, err = io.StringIO(), io.StringIO()
    before = (sys.argv, signal.getsignal(signal.SIGINT))
    code: Any = 0
    try:
        sys.argv = ["snt", *words]
        with contextlib.chdir(at), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGINT, before[1])
    return Done(int(code or 0), out.getvalue(), err.getvalue())
