"""The command line: parse, call, print. No logic, and no heavy import before a command runs."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from typing import Any

from snt.errors import SntError
from snt.processes import world

INTERRUPTED = 130


class Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which the parser would turn into its own exit code."""


def main() -> None:
    """Run `snt`; every error becomes one message and its exit code, a traceback under --debug."""
    debug = "--debug" in sys.argv
    sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != "--debug")]
    signal.signal(signal.SIGINT, _interrupt)
    if "RANK" in os.environ:
        # Whoever started several processes ends those that are left, and what was done is kept.
        signal.signal(signal.SIGTERM, _interrupt)
        from snt.launching import end_with_starter

        end_with_starter()
    # Said at its import, by whatever imports it, of an optional kernel for 4-bit models on CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from snt.cli.app import app

        app()
    except SntError as error:
        if debug and error.exit_code == 1:
            traceback.print_exc()
        _stop(str(error), error.exit_code)
    except Interrupted:
        _stop(
            "interrupted; no half-written result was left (detect, tune, eval: --resume goes on)",
            INTERRUPTED,
        )
    except MemoryError:
        _stop("out of memory; give --batch-size a smaller number or use a smaller model", 1)
    except BrokenPipeError:
        # The reader of our output has gone, as in `snt models | head -1`.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _stop(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise Interrupted


def _stop(message: str, code: int) -> None:
    here = world()
    who = "" if here.leads else f"process {here.rank + 1} of {here.size}: "
    from snt.cli.output import printable

    sys.stderr.write(f"snt: {who}{printable(message)}\n")
    sys.exit(code)
