"""What a file's metadata says, in words: plain, short and printable, whatever stands in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What a reader asks first, in this order; other keys follow by name.
_ORDER = (
    *(
        "model",
        "fingerprint",
        "importance",
        "positions",
        "selection",
        "combine",
        "consistency",
        "kinds",
    ),
    *("corpora", "data", "retain", "prompts_dropped", "template", "system_prompt", "backend"),
    *("dtype", "seed", "snt", "parents"),
)
_NAMES = ("id", "name", "rule")
_DIGEST = re.compile(r"[0-9a-f]{40,}")
_LONGEST = 200
_DEEPEST = 3


def provenance_lines(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a file was made: what is said, and the words, several lines where there are parts."""
    lines = []
    known = [key for key in _ORDER if key in provenance]
    for key in [*known, *sorted(provenance.keys() - set(known))]:
        value = provenance[key]
        if key == "parents" and isinstance(value, list):
            text = "\n".join(_parent(parent) for parent in value)
        else:
            text = _plain(value)
        lines.append((clean(key).replace("_", " "), text))
    return lines


def model_name(provenance: Mapping[str, Any]) -> str | None:
    """The model that the file is for, where it says so."""
    model = provenance.get("model")
    named = model.get("id") if isinstance(model, dict) else None
    return clean(named) if isinstance(named, str) else None


def _parent(provenance: Any) -> str:
    """The mask that a mask was made of, by its selection and its corpora."""
    if not isinstance(provenance, dict):
        return _plain(provenance)
    told = [_plain(provenance[key]) for key in ("selection", "combine") if key in provenance]
    corpora = provenance.get("corpora")
    held = sorted(corpora.items(), key=_first) if isinstance(corpora, dict) else []
    named = [_plain(c["name"]) for _, c in held if isinstance(c, dict) and "name" in c]
    return ", ".join([*told, *([" against ".join(named)] if named else [])]) or "a mask"


def _plain(value: Any, depth: int = 0) -> str:
    """A value of the metadata in words; nothing deep, long or unprintable."""
    if isinstance(value, dict):
        if depth == _DEEPEST:
            return "…"
        held = sorted(((k, v) for k, v in value.items() if v is not None), key=_first)
        nested = depth == 0 and held and all(isinstance(item, dict) for _, item in held)
        parts = [_entry(key, item, depth) for key, item in held]
        return ("\n" if nested else ", ").join(parts)
    if isinstance(value, list):
        lines = depth == 0 and all(isinstance(item, dict) for item in value)
        items = [_plain(item, depth + 1) for item in value] if depth < _DEEPEST else ["…"]
        return ("\n" if lines else ", ").join(items) or "none"
    if value is None:
        return "none"
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"{value[:12]}…"
    return clean(str(value))


def _first(item: tuple[str, Any]) -> tuple[bool, str]:
    """Sorts what names a thing before what describes it."""
    return item[0] not in (*_NAMES, "corpus"), item[0]


def _entry(key: str, value: Any, depth: int) -> str:
    text = _plain(value, depth + 1)
    if key in _NAMES:
        return text
    if key in ("rows", "parameters") and type(value) is int:
        return f"{value:,} {key}"
    return f"{clean(key).replace('_', ' ')}{':' if isinstance(value, dict) else ''} {text}"


def clean(text: str) -> str:
    """Printable characters alone: an escape sequence in a file must not reach the terminal."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_LONGEST])
    return shown + ("…" if len(text) > _LONGEST else "")
