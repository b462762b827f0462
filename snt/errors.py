"""What can go wrong, and the exit code each case has (docs/contract of the command line).

Every error carries one message that names what failed, the value, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SntError(Exception):
    """Base of every error that snt raises on purpose; while running: exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        # KeyError would print the repr of its message; ours is a sentence.
        return str(self.args[0]) if self.args else type(self).__name__


class RunFailure(SntError, RuntimeError):
    """The request was sound and the work failed: disk full, out of memory, a dead rank."""


class RequestError(SntError, ValueError):
    """The request cannot be served as it was made: exit code 2."""

    exit_code = 2


class MissingFileError(RequestError, FileNotFoundError):
    """A file or directory that the request names does not exist."""


class UnknownNameError(RequestError, LookupError):
    """A name that is in no list: model, corpus, backend, kind, suite."""


class FormatError(RequestError):
    """A file is there and is not what it should be: damaged, truncated, hostile."""


class MismatchError(RequestError):
    """Two things that do not fit: a mask for another model, a patch for other weights."""


class UnavailableError(RequestError, ImportError):
    """Something that must be installed first; the message holds the install line."""


class NegativeResult(SntError):
    """It ran to its end and the answer is no: exit code 3."""

    exit_code = 3


def unknown_name(what: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for `name`, with the nearest known names, or all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    offer = (
        f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}."
    )
    return UnknownNameError(f"unknown {what} {name!r}; {offer}{' ' + hint if hint else ''}")
