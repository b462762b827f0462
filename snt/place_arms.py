"""The masks that are compared: located by each rule, and their controls, at one budget each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snt.anatomy import Anatomy
from snt.errors import RequestError, unknown_name
from snt.masks import NeuronMask
from snt.matched_masks import foundation_like, magnitude_like
from snt.random_masks import random_like
from snt.scores import Place, Scores
from snt.selection import consistency_order, contrast_order, within_budget
from snt.selection_rules import Selection

LOCATED = ("contrast", "subtract", "consistent")
CONTROLS = ("random", "uniform", "magnitude", "foundation")
# Share of the model that counts as foundation for `subtract`: the same at every budget, so that
# arms of one rule differ in size alone.
FOUNDATION = 0.05
ARMS: Mapping[str, str] = {
    "contrast": "largest effect size between the two corpora",
    "consistent": "most consistently important on the first corpus (the paper's safety neurons)",
    "subtract": "the same without the first 5% of the second corpus (the paper's RSN step)",
    "random": "drawn within the layers and kinds of the first located rule",
    "uniform": "drawn from all neurons of the model, whatever layer and kind",
    "magnitude": "as important as those of the first located rule, but not among them",
    "foundation": "most consistently important on the second corpus",
}


@dataclass(frozen=True)
class PlaceArm:
    """One mask of the comparison. `draw` numbers the random ones from 1; None for the others."""

    rule: str
    budget: str
    draw: int | None
    mask: NeuronMask

    @property
    def name(self) -> str:
        """`contrast at 0.1%`, `random-2 at 0.1%`."""
        drawn = "" if self.draw is None else f"-{self.draw}"
        return f"{self.rule}{drawn} at {self.budget}"


def arms_of(
    anatomy: Anatomy,
    scores: Scores,
    against: Scores,
    rules: Sequence[str],
    budgets: Sequence[str],
    draws: int,
    parameters: int,
    provenance: Mapping[str, object] | None = None,
    others: Mapping[str, Mapping[Place, Tensor]] | None = None,
) -> Iterator[PlaceArm]:
    """Every arm, budget by budget, smallest first as given.

    `parameters` is the size of the model, which budgets are a share of. `others` holds rules of
    other detections: per place (n,) float64, lower is kept first. The controls `random`,
    `magnitude` and `foundation` are matched per layer and kind to the first located rule of
    `rules`. Raises UnknownNameError for a rule, RequestError for budgets that hold no neuron or no
    located rule.
    """
    others = others or {}
    for rule in rules:
        if rule not in ARMS and rule not in others:
            raise unknown_name("rule", rule, [*ARMS, *others])
    located = [rule for rule in rules if rule in LOCATED or rule in others]
    if not located:
        raise RequestError(f"no located rule among {', '.join(rules)}; add {', '.join(LOCATED)}")
    consistent = consistency_order(scores)
    foundation = within_budget(anatomy, consistency_order(against), int(FOUNDATION * parameters))
    orders: dict[str, Mapping[Place, Tensor]] = {
        **others,
        "contrast": contrast_order(scores, against),
        "consistent": consistent,
        "subtract": _without(consistent, foundation),
    }
    for budget in budgets:
        size = Selection.parse(f"budget={budget}").budget(parameters)

        def cut(rule: str, budget: str = budget, size: int = size) -> NeuronMask:
            chosen = within_budget(anatomy, orders[rule], size)
            selection = {"rule": rule, "budget": budget}
            return NeuronMask(
                anatomy, chosen, provenance={**(provenance or {}), "selection": selection}
            )

        first = cut(located[0])
        for rule in rules:
            if rule in located:
                yield PlaceArm(rule, budget, None, cut(rule))
            elif rule == "magnitude":
                yield PlaceArm(rule, budget, None, magnitude_like(first, scores))
            elif rule == "foundation":
                yield PlaceArm(rule, budget, None, foundation_like(first, against))
            else:
                for draw in range(1, draws + 1):
                    mask = (
                        random_like(first, draw)
                        if rule == "random"
                        else uniform_mask(anatomy, size, draw, provenance)
                    )
                    yield PlaceArm(rule, budget, draw, mask)


def agreed_order(pairs: Sequence[tuple[Scores, Scores]]) -> dict[Place, Tensor]:
    """The contrast of each (scores, against), a neuron held to the pair that speaks least for it.

    With one pair the plain contrast; with halves of a corpus, what both halves agree on.
    """
    first, *rest = (contrast_order(*pair) for pair in pairs)
    for other in rest:
        first = {place: torch.maximum(values, other[place]) for place, values in first.items()}
    return first


def uniform_mask(
    anatomy: Anatomy, parameters: int, seed: int, provenance: Mapping[str, object] | None = None
) -> NeuronMask:
    """Neurons drawn from the whole model until their parameters fill the budget."""
    draw = torch.Generator().manual_seed(seed)
    order: dict[Place, Tensor] = {
        (layer, kind): torch.rand(anatomy.size(kind), generator=draw, dtype=torch.float64)
        for layer in range(anatomy.layers)
        for kind in ("ffn", "q", "k", "v")
    }
    chosen = within_budget(anatomy, order, parameters)
    selection = {"rule": "random", "matched": "parameters"}
    return NeuronMask(
        anatomy, chosen, provenance={**(provenance or {}), "selection": selection, "seed": seed}
    )


def _without(order: Mapping[Place, Tensor], removed: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    """The order with some neurons moved behind all others."""
    kept = {}
    for place, values in order.items():
        moved = values.clone()
        if place in removed:
            moved[removed[place].long()] = torch.inf
        kept[place] = moved
    return kept
