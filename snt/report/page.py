"""The parts that HTML reports are made of: escaped text, tables, cells on colours that read alike
in light and dark, and one page that needs no other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import log2

LEVELS = 6  # Colours of a heat map; level 0 is none.

# No script runs and nothing is fetched, whatever stood in the files.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --line: #d5dae0; --back: #fff;
  --card: #f6f8fa; --accent: #0b6e99;
  --b1: #e6f1f4; --b2: #c3dfe8; --b3: #8fc3d6; --b4: #4a9dbd; --b5: #12698c; --b6: #0a4059;
  --i1: #1c2024; --i2: #1c2024; --i3: #1c2024; --i4: #0b1114; --i5: #fff; --i6: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b1; --line: #363d45;
  --back: #14181c; --card: #1c2126; --accent: #6cc4e4;
  --b1: #182a32; --b2: #17404f; --b3: #175d74; --b4: #2a87a5; --b5: #63b5d0; --b6: #b6e3f1;
  --i1: #c4ccd4; --i2: #e4e8ec; --i3: #fff; --i4: #fff; --i5: #0b1114; --i6: #0b1114; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--back);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .35rem; }
p { margin: .35rem 0; max-width: 46rem; } .soft { color: var(--soft); }
nav ul { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .25rem 0; }
th, td { padding: .3rem .75rem; text-align: right; vertical-align: top; }
thead th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line); }
tbody th, th:first-child, td.words { text-align: left; }
tbody tr.start th, tbody tr.start td { border-top: 1px solid var(--line); }
table.facts th { font-weight: 400; color: var(--soft); padding-left: 0; white-space: nowrap; }
table.facts td { text-align: left; white-space: pre-line; }
table.map { width: 100%; table-layout: fixed; border-spacing: 2px; border-collapse: separate; }
table.map th, table.map td { padding: .2rem 0; text-align: center; font-size: .72rem;
  overflow-wrap: normal; }
table.map th:first-child { width: 3rem; text-align: left; font-size: .85rem; }
table.map thead th { border: 0; font-weight: 400; }
table.matrix { border-spacing: 3px; border-collapse: separate; }
table.matrix td { min-width: 7.5rem; text-align: center; border-radius: .25rem;
  padding: .45rem .6rem; }
table.matrix thead th { text-align: center; border: 0; color: var(--ink); }
td small { display: block; font-size: .78rem; white-space: nowrap; }
td.self { background: var(--card); color: var(--soft); }
td.l0 { background: var(--card); color: var(--soft); }
td.l1 { background: var(--b1); color: var(--i1); }
td.l2 { background: var(--b2); color: var(--i2); }
td.l3 { background: var(--b3); color: var(--i3); }
td.l4 { background: var(--b4); color: var(--i4); }
td.l5 { background: var(--b5); color: var(--i5); }
td.l6 { background: var(--b6); color: var(--i6); }
@media print { .wide { overflow: visible; } }
"""


def page(title: str, lead: str, sections: Iterable[str], style: str = "") -> str:
    """A whole HTML document; `title` and `lead` are text, `sections` HTML, `style` more CSS."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f'<h1>{text(title)}</h1>\n<p class="soft">{text(lead)}</p>\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def text(words: object) -> str:
    """Words as HTML: whatever stands in a file is shown, and does nothing."""
    return escape(str(words), quote=True)


def paragraph(words: str, soft: bool = False) -> str:
    """A paragraph of text."""
    opening = '<p class="soft">' if soft else "<p>"
    return f"{opening}{text(words)}</p>"


def row(head: str, cells: Iterable[str], start: bool = False) -> str:
    """A row of a table: its head, and figures; `start` draws a line above it."""
    figures = "".join(f"<td>{text(figure)}</td>" for figure in cells)
    opening = '<tr class="start">' if start else "<tr>"
    return f'{opening}<th scope="row">{text(head)}</th>{figures}</tr>'


def table(heads: Sequence[str], rows: Iterable[str], caption: str = "", kind: str = "") -> str:
    """A table of rows that are HTML already, under `heads`, which are text."""
    named = f' class="{kind}"' if kind else ""
    top = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    above = f"<caption>{text(caption)}</caption>" if caption else ""
    head = f"<thead><tr>{top}</tr></thead>" if heads else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table{named}>{above}{head}<tbody>\n{body}\n</tbody></table></div>'


def cell(shown: str, level: int, said: str = "", small: Sequence[str] = ()) -> str:
    """A cell of a heat map: what it shows, its colour, and what it says when pointed at."""
    told = f' title="{text(said)}"' if said else ""
    more = "".join(f"<small>{text(words)}</small>" for words in small)
    return f'<td class="l{level}"{told}>{text(shown)}{more}</td>'


def doublings(value: float, largest: float) -> int:
    """Level of a value: the highest for the largest, one less for each halving, 1 at the least."""
    if value <= 0 or largest <= 0:
        return 0
    return max(LEVELS - int(-log2(min(value / largest, 1.0))), 1)


def tenths(value: float, largest: float) -> int:
    """Level of a value on a linear scale from nothing to the largest."""
    if value <= 0 or largest <= 0:
        return 0
    return min(1 + int(LEVELS * value / largest), LEVELS)
