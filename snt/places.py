"""Places on this machine, which nothing that is made to be shared may name."""

from __future__ import annotations

import re

_PLACE = re.compile(r"[/~]|file:|[A-Za-z]:[/\\]|\\\\")


def names_place(text: str) -> bool:
    """Whether a text is an absolute path, of any system, or one below somebody's home."""
    return _PLACE.match(text) is not None


def without_place(word: str) -> str:
    """A word of a command with a path that leads elsewhere, also after `--option=`, as its name."""
    before, sign, path = word.rpartition("=")
    if not names_place(path) and not path.startswith("../"):
        return word
    return before + sign + re.split(r"[/\\]", path.rstrip("/\\"))[-1]
