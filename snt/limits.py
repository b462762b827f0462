"""Limits of a mask by kind and by layer, as `--at-most` writes them: `ffn=0.5%,q=200,layer=3%`.

This project's: neither the paper nor its code has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snt.anatomy import KINDS, Anatomy
from snt.errors import RequestError
from snt.scores import Place

SOURCE = "this project's: neurons in order, those of a full kind or layer passed over"


@dataclass(frozen=True)
class Limits:
    """The most neurons of a kind, and of any one layer (`layer`, all kinds together).

    A float is a share, of all neurons of that kind or of a layer; an int is a number.
    """

    text: str = ""
    most: Mapping[str, int | float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Read `NAME=N` or `NAME=P%`, comma between them. Raises RequestError with the form."""
        most: dict[str, int | float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            match = re.fullmatch(r"([0-9]{1,12})|([0-9]{1,3}(?:\.[0-9]{1,12})?)%", value)
            wrong = match is None or name not in (*KINDS, "layer") or name in most
            if wrong or match is None or (match[2] and float(match[2]) > 100):
                raise RequestError(
                    f"--at-most {text!r} gives no limits; write a number or a share for a kind "
                    f"({', '.join(KINDS)}) or for any one layer, as in ffn=0.5%,q=200,layer=3%"
                )
            most[name] = int(match[1]) if match[1] else float(match[2]) / 100
        return cls(text, most)

    def __bool__(self) -> bool:
        return bool(self.most)

    def of_kind(self, anatomy: Anatomy, kind: str) -> int | None:
        """The most neurons of `kind` in the whole model."""
        return _number(self.most.get(kind), anatomy.layers * anatomy.size(kind))

    def of_layer(self, anatomy: Anatomy) -> int | None:
        """The most neurons of any one layer."""
        return _number(self.most.get("layer"), sum(anatomy.size(kind) for kind in KINDS))

    def admitted(self, anatomy: Anatomy, places: Sequence[Place], owner: Tensor) -> Tensor:
        """Which neurons of a sequence, best first, find their kind and their layer not yet full.

        owner: (n,) int64, the number in `places` of each neuron's place. Returns (n,) bool.
        """
        if not self:
            return torch.ones(len(owner), dtype=torch.bool)
        endless = len(owner)
        room = {kind: self.of_kind(anatomy, kind) for kind in KINDS}
        kinds = {kind: endless if most is None else most for kind, most in room.items()}
        most = self.of_layer(anatomy)
        layers = dict.fromkeys((layer for layer, _ in places), endless if most is None else most)
        kept = []
        for number in owner.tolist():
            layer, kind = places[number]
            free = kinds[kind] > 0 and layers[layer] > 0
            if free:
                kinds[kind] -= 1
                layers[layer] -= 1
            kept.append(free)
        return torch.tensor(kept, dtype=torch.bool)


def _number(most: int | float | None, total: int) -> int | None:
    # The share as it was written: 0.1% of 1000 is 1, though 0.001 * 1000 may fall below it.
    return int(most * total + 1e-9) if isinstance(most, float) else most
