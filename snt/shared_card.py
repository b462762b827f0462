"""The card of a repository of masks and patches: what is in it, and what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from snt.shared_files import SharedFile

# By this line a card is known as one that snt wrote, and may write again.
MARK = "<!-- files of snt; the table below is kept by `snt push` -->"
_ROW = re.compile(r"\| `(?P<name>[^`|]+)` \| (?P<rest>.*) \|")


def card(repository: str, shared: Sequence[SharedFile], before: str | None = None) -> str | None:
    """The card with rows of `shared`, and those of other files that the card `before` has.

    None when `before` is a card by somebody else, which is left alone.
    """
    if before is not None and before.strip() and MARK not in before:
        return None
    rows = {m["name"]: m["rest"] for m in map(_ROW.fullmatch, (before or "").split("\n")) if m}
    for one in shared:
        model = f"`{_cell(one.model)}`" if one.model else "-"
        rows[_cell(one.name)] = f"{one.kind} | {model} | {_cell(one.facts)}"
    models = {_base(rest) for rest in rows.values()} - {None}
    base = "".join(f"\n- {one}" for one in sorted(filter(None, models)))
    table = "\n".join(f"| `{name}` | {rest} |" for name, rest in sorted(rows.items()))
    return f"""---
library_name: snt
tags:
- safety
- snt{f"{chr(10)}base_model:{base}" if base else ""}
---
# Safety neurons: {repository}

{MARK}

| file | kind | model | what it says |
|---|---|---|---|
{table}

Get them with `snt pull {repository}`; `snt inspect FILE` shows what is in one and how it was made.

## What it is for

These files find, measure and strengthen refusals of harmful requests: a mask names neurons, a patch
holds deltas that make a model refuse more reliably. A patch is a layer of defence and no guarantee,
and a mask found on one model says nothing of another. Measure on your own prompts before you rely
on either, refusals of harmless requests included (`snt eval`).
"""


def _base(rest: str) -> str | None:
    found = re.search(r"\| `([\w.-]+/[\w.-]+)` \|", f"| {rest} |")
    return found[1] if found else None


def _cell(text: str) -> str:
    """One line without what would end a cell or begin markup."""
    return re.sub(r"[|`<>\n\r]", " ", text)[:200]
