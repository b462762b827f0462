"""The command line: parse, call, print. No logic, and no heavy import before a command runs."""

from __future__ import annotations

import sys

from snt.errors import SntError


def main() -> None:
    """Run `snt`; an error that snt raised becomes one message and its exit code."""
    from snt.cli.app import app

    try:
        app()
    except SntError as error:
        sys.stderr.write(f"snt: {error}\n")
        sys.exit(error.exit_code)
