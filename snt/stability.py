"""Would other prompts have given the same mask? Two halves of the corpus, each cut by the rule.

Whole batches are dealt alternately, so that both halves hold prompts of similar lengths and their
scores merge into the whole's to the bit. Half the prompts give a noisier mask than all of them, so
the overlap bounds that of two whole corpora from below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from snt.errors import RequestError
from snt.masks import NeuronMask
from snt.overlap import Overlap, overlap_of
from snt.scores import Scores
from snt.selection_rules import Selection

BUDGETS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)  # percent of the model's parameters
FACTORS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the given epsilon or ranks

Cut = Callable[[Scores, Scores | None, Selection], NeuronMask]


@dataclass(frozen=True)
class Half:
    """Scores of one half of the prompts, on the corpus and on the second one where there is one."""

    corpus: Scores
    against: Scores | None

    @property
    def prompts(self) -> int:
        """Prompts of the first corpus in this half."""
        return next(iter(self.corpus.places.values())).prompts


@dataclass(frozen=True)
class CurvePoint:
    """One threshold: the whole mask's neurons and parameters, and how the two halves' overlap.

    `overlap` is None where a half's selection holds no neuron.
    """

    threshold: str
    neurons: int
    parameters: int
    overlap: Overlap | None

    def as_json(self) -> dict[str, Any]:
        """All figures; `iou` and `iou_by_chance` are null where a half holds no neuron."""
        return {
            "threshold": self.threshold,
            "neurons": self.neurons,
            "parameters": self.parameters,
            "iou": self.overlap.iou if self.overlap else None,
            "iou_by_chance": chance_iou(self.overlap) if self.overlap else None,
        }


@dataclass(frozen=True)
class Stability:
    """The masks of two halves at the given selection, and a curve over thresholds."""

    prompts: tuple[int, int]
    point: CurvePoint
    curve: tuple[CurvePoint, ...]

    def as_json(self) -> dict[str, Any]:
        """The `stability` object of a report; the curve stands beside it."""
        return {
            "prompts": list(self.prompts),
            "halves": "whole batches of similar length, dealt alternately",
            **self.point.as_json(),
        }


def stability_of(
    cut: Cut, whole: Half, halves: tuple[Half, Half], selection: Selection, model_parameters: int
) -> Stability:
    """Split-half overlap at `selection`, and the curve; `cut` makes a mask from scores."""

    def point(rule: Selection) -> CurvePoint:
        mask, *parts = (_cut(cut, half, rule) for half in (whole, *halves))
        full = [part for part in parts if part is not None]
        overlap = overlap_of("first half", full[0], "second half", full[1]) if full[1:] else None
        neurons, size = (len(mask), mask.parameters) if mask is not None else (0, 0)
        return CurvePoint(rule.text, neurons, size, overlap)

    curve = tuple(point(rule) for rule in thresholds(selection, model_parameters))
    own = next((made for made in curve if made.threshold == selection.text), None)
    return Stability((halves[0].prompts, halves[1].prompts), own or point(selection), curve)


def thresholds(selection: Selection, model_parameters: int) -> list[Selection]:
    """The selections of the curve, smallest mask first, the given one among them."""
    if selection.name == "budget":
        rules = [Selection.parse(f"budget={percent:g}%") for percent in BUDGETS]
        own = selection.budget(model_parameters)
        rules = [rule for rule in rules if rule.budget(model_parameters) != own] + [selection]
        return sorted(rules, key=lambda rule: rule.budget(model_parameters))
    if selection.epsilon is not None:
        texts = [f"epsilon={selection.epsilon / factor:g}" for factor in FACTORS]
    else:
        texts = [
            "topk=" + ",".join(f"{k}:{max(1, round(n * f))}" for k, n in selection.ranks.items())
            for f in FACTORS
        ]
    own_at = FACTORS.index(1.0)
    return [
        selection if number == own_at else Selection.parse(text)
        for number, text in enumerate(texts)
    ]


def chance_iou(overlap: Overlap) -> float:
    """IoU of random masks with the same counts per layer and kind, from the expected overlap."""
    sizes = overlap.union + overlap.intersection
    return overlap.expected / (sizes - overlap.expected) if sizes else 1.0


def _cut(cut: Cut, half: Half, rule: Selection) -> NeuronMask | None:
    try:
        return cut(half.corpus, half.against, rule)
    except RequestError:
        # The rule itself has been served for the whole mask: here it leaves no neuron.
        return None
