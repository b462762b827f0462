"""Whether a reply gives the expected answer: the last number, or the last line, as it is written.

GSM8K's rules (Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168): the
answer stands after `####`, commas group thousands. A reply that writes no `####` is read by its
last number, as evaluations of chat models do.
"""

from __future__ import annotations

import re
import string
from decimal import Decimal

MARK = "####"
# Digits with or without commas between thousands, a fraction; a sign that touches them and that
# no digit stands before.
_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_CALCULATION = re.compile(r"<<[^<>]*>>")
_MINUS = "−"


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, else the last number of the text; None without one."""
    _, mark, after = text.rpartition(MARK)
    found = _NUMBER.findall(after) if mark else []
    if found:
        return _value(found[0])
    found = _NUMBER.findall(text)
    return _value(found[-1]) if found else None


def gives(reply: str, expected: str) -> bool:
    """Whether `reply` ends in the answer `expected`.

    A number is compared as a number. Any other answer must be the reply's last line, or follow a
    colon there, case, outer punctuation and spaces aside.
    """
    wanted = _NUMBER.fullmatch(expected.strip())
    if wanted is not None:
        return final_number(reply) == _value(wanted[0])
    lines = [line for line in reply.splitlines() if line.strip()]
    if not lines:
        return False
    last = lines[-1]
    return _bare(expected) in (_bare(last), _bare(last.rpartition(":")[2]))


def without_calculations(text: str) -> str:
    """GSM8K's answers without `<<48/2=24>>`, notes for a calculator that no reply would write."""
    return _CALCULATION.sub("", text)


def _value(text: str) -> Decimal:
    return Decimal(re.sub(r"[,$€£\s]", "", text).replace(_MINUS, "-")).normalize()


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(string.punctuation + " ")
