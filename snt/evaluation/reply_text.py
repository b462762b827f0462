"""A reply made comparable: one apostrophe, no template tokens, quotations set aside, sentences.

Nothing here knows what a refusal is; see `refusal_phrases` and `refusal_rules`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_TEMPLATE_TOKENS = re.compile(
    r"<\|start_header_id\|>\s*\w+\s*<\|end_header_id\|>"
    r"|<\|im_start\|>\s*(?:assistant|user|system)?"
    r"|<start_of_turn>\s*(?:model|user)?"
    r"|<\|[^|<>\n]{0,40}\|>"
    r"|</?s>|<(?:pad|unk|eos|bos|mask|end_of_turn|endoftext)>"
    r"|\[/?(?:INST|SYS|PAD|UNK|CLS|SEP)\]|<</?SYS>>",
    re.IGNORECASE,
)
_CURLY = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'", "\u00b4": "'"})
_DOUBLE = str.maketrans(dict.fromkeys("“”„«»「」", '"'))
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]{1,200}`")
_SPEAKER = re.compile(
    r"^(?:assistant|ai|bot|chatbot|response|answer|output|model)\s*:\s*", re.IGNORECASE
)
_OPENING_MARKS = re.compile(r"^[\s>#*_~|\-\u2013\u2014\u2022]+")
_STAGE_DIRECTION = re.compile(r"^\*[^*\n]{1,40}\*\s*(?=\S)")
_HEADING = re.compile(r"^#{1,6}\s*(?:response|answer|assistant)\s*:?\s*\n", re.IGNORECASE)
_END = re.compile(r"(?<=[.!?\u2026])[\"')\]*_]*\s+|(?<=[\u3002\uff01\uff1f])\s*|\n+")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|u\.s)\.$", re.IGNORECASE)
_LIST_ITEM = re.compile(
    r"(?:^|\n)[ \t>]*(?:\*\*)?(?:\d{1,2}[.):]|[-*\u2022+]|step\s+\d+\b)[ \t]*\S", re.IGNORECASE
)
_BARE_MARKER = re.compile(r"^[ \t]*(?:\d{1,3}[.)]|[-*\u2022+])[ \t]*$", re.MULTILINE)

# Below these counts a repetition may be an answer ("hello" five times); above, no human wrote it.
_LOOP_WORDS, _LOOP_CHARACTERS = 8, 14
_LONGEST_PHRASE = 12
_SHORT_QUOTATION = 8


def plain(reply: str) -> str:
    """`reply` without template tokens, with straight quotes and no decoration before its text."""
    text = _TEMPLATE_TOKENS.sub(" ", unicodedata.normalize("NFC", reply)).translate(_DOUBLE)
    text = "\n".join(line.rstrip() for line in text.splitlines()).strip()
    text = _HEADING.sub("", text)
    text = _STAGE_DIRECTION.sub("", text)
    text = _OPENING_MARKS.sub("", text) if not _LIST_ITEM.match(text) else text
    while text and unicodedata.category(text[0]) in {"So", "Cf", "Mn", "Zs"}:
        text = text[1:]
    return _SPEAKER.sub("", text.lstrip())


def without_quotations(text: str) -> str:
    """`text` lowered, without code and quoted passages: they are not the reply's voice.

    A long passage leaves `""` in its place and a short one (a title, the user's words) `''`. A
    reply that is one quotation as a whole keeps its words.
    """
    text = _CODE.sub('\n""\n', text)
    text = _INLINE_CODE.sub('""', text).translate(_CURLY)
    whole = re.fullmatch(r'"([^"]*)"?\s*', text, re.DOTALL)
    if whole:
        text = whole.group(1)
    text = re.sub(r'"([^"]{0,800})"', _placeholder, text)
    # A cut-off reply can end inside a quotation.
    text = re.sub(r'(^|\s)"(?=[^\s"])[^"]*\Z', r'\1""', text)
    return re.sub(r"\*\*|__", "", text).lower()


def _placeholder(quotation: re.Match[str]) -> str:
    return '""' if len(quotation[1].split()) > _SHORT_QUOTATION else "''"


def is_one_quotation(text: str) -> bool:
    """Whether a plain reply is a single quoted passage, with at most a few words after it."""
    return re.fullmatch(r'\s*"[^"]+"?\W*(?:\w+\W+){0,6}', text) is not None


def opens_as(text: str, prompt: str, words: int = 3) -> bool:
    """Whether the first words of `text` stand in `prompt`: it works on a text that was given."""
    first = re.findall(r"[\w']+", text.translate(_CURLY).lower())[:words]
    given = re.findall(r"[\w']+", prompt.translate(_CURLY).lower())
    return len(first) == words and any(
        given[at : at + words] == first for at in range(len(given) - words + 1)
    )


def sentences(text: str) -> list[str]:
    """Sentences and lines of `text`, in order, without empty ones."""
    parts: list[str] = []
    for piece in _END.split(text):
        if parts and _ABBREVIATION.search(parts[-1]):
            parts[-1] = f"{parts[-1]} {piece}"
        elif '""' in piece or (re.search(r"\w", piece) and not _BARE_MARKER.fullmatch(piece)):
            parts.append(piece.strip())
    return parts


def list_items(text: str) -> int:
    """How many lines of `text` are items of a list (numbered, bulleted or "Step 1")."""
    return len(_LIST_ITEM.findall(text))


def list_introduction(text: str) -> str:
    """The last sentence before the first list item of `text`; empty when there is no list."""
    first = _LIST_ITEM.search(text)
    before = sentences(text[: first.start()]) if first else []
    return before[-1] if before else ""


def is_blank(reply: str) -> bool:
    """Whether nothing but punctuation, template tokens and empty list markers was said."""
    text = _TEMPLATE_TOKENS.sub(" ", reply)
    if len(_BARE_MARKER.findall(text)) > 1:
        text = _BARE_MARKER.sub("", text)
    return not any(c.isalnum() or (unicodedata.category(c) == "So" and c != "\ufffd") for c in text)


def is_loop(reply: str) -> bool:
    """Whether the reply is one token or phrase over and over."""
    text = _TEMPLATE_TOKENS.sub(" ", reply).lower()
    words = re.findall(r"\w+|[^\w\s]{2,}", text)
    if len(words) >= _LOOP_WORDS and _repeats(words, 4 if len(words) >= 12 else 6):
        return True
    letters = re.sub(r"\s+", "", text)
    if letters.strip("0123456789.,%$-") == "" and len(words) == 1:
        return False
    return len(letters) >= _LOOP_CHARACTERS and len(words) <= 3 and _repeats(letters, 6)


def _repeats(units: Sequence[str], times: int) -> bool:
    """Whether a phrase of at most 12 units fills nearly all of `units`, at least `times` times."""
    for period in range(1, min(_LONGEST_PHRASE, len(units) // times) + 1):
        same = sum(a == b for a, b in zip(units, units[period:], strict=False))
        if same >= 0.9 * (len(units) - period):
            return True
    return False
