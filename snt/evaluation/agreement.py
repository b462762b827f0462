"""How far two judges agree on the same replies (Cohen 1960)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from snt.errors import RequestError


@dataclass(frozen=True)
class Agreement:
    """`same` of `n` outcomes are equal; kappa is what is left of that beyond chance.

    kappa is None where chance alone would agree on everything: both judges always said the same
    one thing.
    """

    n: int
    same: int
    kappa: float | None

    @property
    def share(self) -> float:
        """Equal outcomes, as a fraction."""
        return self.same / self.n

    def as_json(self) -> dict[str, Any]:
        """Share, kappa and the number of replies."""
        return {"share": self.share, "kappa": self.kappa, "n": self.n}


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> Agreement:
    """Agreement of two judges' outcomes over the same replies, in the same order.

    Raises RequestError for no replies and for unequal numbers.
    """
    n = len(first)
    if n != len(second) or not n:
        raise RequestError(
            f"{n} outcomes of one judge and {len(second)} of another; compare both on the same "
            "replies, at least one"
        )
    same = sum(a == b for a, b in zip(first, second, strict=True))
    one, other = Counter(first), Counter(second)
    chance = sum(one[outcome] * other[outcome] for outcome in one)
    kappa = None if chance == n * n else (same * n - chance) / (n * n - chance)
    return Agreement(n, same, kappa)
