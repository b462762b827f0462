"""Replies of several models to read side by side, harmful ones folded away, as parts of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from snt.evaluation.completions import Completion
from snt.report.evaluation_chart import ink
from snt.report.page import paragraph, text

# Prompts that may be shown unasked; all others, of suites yet to come too, are folded away.
HARMLESS = frozenset({"harmless_refusal", "over_refusal"})
MOST = 1_000  # rows of one metric on the page; the files have all of them

# What could act on the reader's screen: control characters, and marks that turn text around.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_CHOICES = (
    ("all", "all", ""),
    ("changed", "labelled differently", "changed"),
    ("refused", "refused by a model", "refused"),
    ("answered", "answered by a model", "answered"),
    ("odd", "partial or empty", "odd"),
)
STYLE = """
.choices { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; border: 0; padding: 0; margin: 0; }
.key { display: inline-block; min-width: 1.5em; padding: 0 .35em; border-radius: .8em;
  text-align: center; font-size: .8rem; font-weight: 700; }
details.reply { border-top: 1px solid var(--line); padding: .3rem 0; }
details.reply summary { cursor: pointer; }
.label { font-size: .8rem; color: var(--soft); white-space: nowrap; }
.side { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
.side > div, .asked { background: var(--card); border-radius: .35rem; padding: .5rem .75rem;
  white-space: pre-wrap; unicode-bidi: isolate; }
.asked { margin: .4rem 0; } .side h4 { margin: 0 0 .25rem; font-size: .85rem; white-space: normal; }
""" + "\n".join(
    f"body:has(#show-{key}:checked) details.reply:not(.{kind}) {{ display: none; }}"
    for key, _, kind in _CHOICES
    if kind
)


def replies_section(
    names: Sequence[str], replies: Sequence[Sequence[Completion]], labels: Mapping[str, str]
) -> str:
    """The replies of the models `names`, in the same order, metric by metric; "" for none.

    `labels` are the metrics' names for people. Nothing of a prompt or reply is markup.
    """
    table: dict[str, dict[tuple[object, str], dict[int, Completion]]] = {}
    for number, rows in enumerate(replies):
        for row in rows:
            held = table.setdefault(str(row.suite), {})
            held.setdefault((row.id, row.prompt), {})[number] = row
    if not table:
        return ""
    parts = ['<section id="replies">\n<h2>Replies, side by side</h2>', _choices()]
    for metric, found in table.items():
        parts.append(f"<h3>{text(labels.get(metric, metric.replace('_', ' ')))}</h3>")
        folded = metric not in HARMLESS
        if folded:
            parts.append(paragraph("Harmful requests and their replies open at a click.", True))
        for place, ((_, prompt), by_model) in enumerate(found.items(), start=1):
            if place > MOST:
                more = f"{len(found) - MOST:,} more are in the files of the replies."
                parts.append(paragraph(more, True))
                break
            parts.append(_reply(place, prompt, by_model, names, folded))
    return "\n".join([*parts, "</section>"])


def _choices() -> str:
    boxes = "".join(
        f'<label><input type="radio" name="show" id="show-{key}"'
        f"{' checked' if key == 'all' else ''}> {words}</label>"
        for key, words, _ in _CHOICES
    )
    return f'<fieldset class="choices" aria-label="which replies">{boxes}</fieldset>'


def _reply(
    place: int, prompt: str, held: Mapping[int, Completion], names: Sequence[str], folded: bool
) -> str:
    given = [str(row.label) for row in held.values()]
    kinds = ["reply"]
    kinds += ["changed"] if len(set(given)) > 1 else []
    kinds += ["refused"] if "refusal" in given else []
    kinds += ["answered"] if "compliance" in given else []
    kinds += ["odd"] if {"partial", "empty"} & set(given) else []
    told = " ".join(f"{_key(n)} {text(row.label)}" for n, row in held.items())
    head = f"request {place}" if folded else shown(prompt)
    asked = f'<div class="asked">{shown(prompt)}</div>' if folded else ""
    columns = "".join(
        f"<div><h4>{_key(n)} {text(names[n])}</h4>{shown(row.response)}</div>"
        for n, row in held.items()
    )
    return (
        f'<details class="{" ".join(kinds)}"><summary>{head} <span class="label">{told}</span>'
        f'</summary>{asked}<div class="side">{columns}</div></details>'
    )


def _key(number: int) -> str:
    return f'<span class="key k{ink(number + 1)}">{number + 1}</span>'


def shown(words: str) -> str:
    """A text of any length as HTML that shows it and does nothing."""
    return text(_UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", words))
