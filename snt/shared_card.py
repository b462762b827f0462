"""The card of a repository of masks and patches: what is in it, and what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from snt.shared_files import SharedFile

# By this line a card is known as one that snt keeps the table of.
MARK = "<!-- files of snt; the table below is kept by `snt push` -->"
_HEAD = "| file | kind | model | what it says |\n|---|---|---|---|"
_TABLE = re.compile(rf"{re.escape(MARK)}\n+(?:\|.*(?:\n|$))*")
_ROW = re.compile(r"\| `(?P<name>[^`|]+)` \| (?P<rest>.*) \|")
_BASE = re.compile(r"\| `([\w.-]+/[\w.-]+)` \|")
_MODELS = re.compile(r"^base_model:.*\n(?:[ \t]*-.*\n)*", re.MULTILINE)


def card(repository: str, shared: Sequence[SharedFile], before: str | None = None) -> str | None:
    """The card with rows of `shared`; of a card `before`, all else stays as it is.

    None when `before` is a card without our table, which is left alone.
    """
    held = before if before and before.strip() else ""
    if held and MARK not in held:
        return None
    old = _TABLE.search(held)
    lines = old[0].split("\n") if old else []
    rows = {m["name"]: m["rest"] for m in map(_ROW.fullmatch, lines) if m}
    for one in shared:
        model = f"`{_cell(one.model)}`" if one.model else "-"
        rows[_cell(one.name)] = f"{one.kind} | {model} | {_text(one.facts)}"
    body = "".join(f"| `{name}` | {rest} |\n" for name, rest in sorted(rows.items()))
    table = f"{MARK}\n\n{_HEAD}\n{body}"
    found = [_BASE.search(f"| {rest} |") for rest in rows.values()]
    models = "".join(f"- {name}\n" for name in sorted({m[1] for m in found if m}))
    base = f"base_model:\n{models}" if models else ""
    if not held:
        return _new(repository, table, base)
    return _with_models(_TABLE.sub(lambda _: table, held, count=1), base)


def _with_models(text: str, base: str) -> str:
    """The front matter's base models as they are now; other lines of it are the owner's."""
    head, mark, rest = text.partition("\n---\n")
    if not (mark and text.startswith("---\n")):
        return text
    head += "\n"
    changed = _MODELS.sub(lambda _: base, head, count=1) if _MODELS.search(head) else head + base
    return f"{changed.rstrip(chr(10))}{mark}{rest}"


def _new(repository: str, table: str, base: str) -> str:
    return f"""---
library_name: snt
tags:
- safety
- snt
{base}---
# Safety neurons: {repository}

{table}
Get them with `snt pull {repository}`; `snt inspect FILE` shows what is in one and how it was made.

## What it is for

These files find, measure and strengthen refusals of harmful requests: a mask names neurons, a patch
holds deltas that make a model refuse more reliably. A patch is a layer of defence and no guarantee,
and a mask found on one model says nothing of another. Measure on your own prompts before you rely
on either, refusals of harmless requests included (`snt eval`).
"""


def _cell(text: str) -> str:
    """One line without what would end a cell or its code."""
    return re.sub(r"[|`<>\x00-\x1f\x7f\ud800-\udfff]", " ", text)[:200]


def _text(text: str) -> str:
    """The same without what would be markup: it is somebody's own words."""
    return re.sub(r"[\[\]!*\\&#]", " ", _cell(text))
