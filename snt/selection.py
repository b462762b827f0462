"""From scores to neurons: named selections, cut in milliseconds without the model.

`budget` (solve for the rank), limits, and `contrast` (the effect size between two corpora) are this
project's; `subtract` is the paper's RSN step, N_safe \\ N_foundation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snt.anatomy import Anatomy
from snt.errors import MismatchError, RequestError
from snt.limits import Limits
from snt.scores import Place, Scores


def check_consistency(consistency: float) -> None:
    """Raise RequestError for what is no share of prompts."""
    if not 0.0 < consistency <= 1.0:
        raise RequestError(f"consistency {consistency} is not in (0, 1]; 1.0 means every prompt")


def consistency_order(scores: Scores, consistency: float = 1.0) -> dict[Place, Tensor]:
    """Per place (n,) float64, lower is kept first: the rank held, as a fraction of the place."""
    check_consistency(consistency)
    return {
        place: held.rank_within(consistency).double() / len(held.minimum)
        for place, held in scores.places.items()
    }


def contrast_order(scores: Scores, against: Scores) -> dict[Place, Tensor]:
    """Per place (n,) float64, lower is kept first: minus the effect size of the log-rank shift.

    The effect size is the difference of mean log-rank (against minus scores) over the pooled
    standard deviation (Cohen's d), so a neuron counts when it is more important on the first corpus
    by more than its own spread.
    """
    if scores.places.keys() != against.places.keys():
        raise MismatchError("the two corpora were scored on different layers or kinds; score both")
    order = {}
    for place, held in scores.places.items():
        mean, variance = held.mean_log_rank()
        other_mean, other_variance = against.places[place].mean_log_rank()
        # A sixteenth of a bin² keeps constant ranks from counting as infinite effects.
        spread = ((variance + other_variance) / 2 + 1 / 16).sqrt()
        order[place] = -(other_mean - mean) / spread
    return order


def within_budget(
    anatomy: Anatomy,
    order: Mapping[Place, Tensor],
    parameters: int,
    limits: Limits | None = None,
) -> dict[Place, Tensor]:
    """The first neurons in order whose parameters together stay within `parameters`.

    Neurons of a kind or layer that `limits` have filled are passed over. Ties go to the earlier
    layer, kind and index. Returns sorted int32 indices per non-empty place. Raises RequestError
    when not even one neuron fits.
    """
    line = _Line.of(order, None)
    admitted = (limits or Limits()).admitted(anatomy, line.places, line.owner)
    prices = [anatomy.neuron_parameters(kind) for _, kind in line.places]
    costs = torch.tensor(prices)[line.owner]
    spent = torch.where(admitted, costs, 0).cumsum(0)
    kept = admitted & (spent <= parameters)
    if not bool(kept.any()) and bool(admitted.any()):
        raise RequestError(
            f"a budget of {parameters} parameters holds no neuron; the smallest has "
            f"{min(prices)}. Raise budget="
        )
    return line.by_place(kept)


def within_limits(
    anatomy: Anatomy,
    order: Mapping[Place, Tensor],
    chosen: Mapping[Place, Tensor],
    limits: Limits,
) -> dict[Place, Tensor]:
    """The neurons of `chosen` that `limits` leave, the first in order before others."""
    line = _Line.of(order, chosen)
    return line.by_place(limits.admitted(anatomy, line.places, line.owner))


@dataclass(frozen=True)
class _Line:
    """Neurons in order, best first: (n,) number of the place among `places`, (n,) index in it."""

    places: list[Place]
    owner: Tensor
    index: Tensor

    @staticmethod
    def of(order: Mapping[Place, Tensor], chosen: Mapping[Place, Tensor] | None) -> _Line:
        places = sorted(order if chosen is None else chosen)
        indices = [
            torch.arange(len(order[place])) if chosen is None else chosen[place].long()
            for place in places
        ]
        if not places:
            return _Line([], torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
        values = torch.cat([order[p][at] for p, at in zip(places, indices, strict=True)])
        owner = torch.cat([torch.full((len(at),), i) for i, at in enumerate(indices)])
        ranked = values.argsort(stable=True)
        return _Line(places, owner[ranked], torch.cat(indices)[ranked])

    def by_place(self, kept: Tensor) -> dict[Place, Tensor]:
        """Sorted int32 indices per non-empty place of the neurons where `kept` (n,) is True."""
        chosen = {}
        owner, index = self.owner[kept], self.index[kept]
        for number, place in enumerate(self.places):
            mine = index[owner == number]
            if len(mine):
                chosen[place] = mine.sort().values.to(torch.int32)
        return chosen


def above(scores: Scores, epsilon: float) -> dict[Place, Tensor]:
    """Neurons whose importance is at least `epsilon` on every prompt (the paper's rule)."""
    return _non_empty({place: held.minimum >= epsilon for place, held in scores.places.items()})


def first_ranks(
    scores: Scores, ranks: Mapping[str, int], consistency: float = 1.0
) -> dict[Place, Tensor]:
    """Neurons among the first `ranks[kind]` of their layer and kind in `consistency` of prompts.

    With consistency 1.0 the released code's rule; kinds without a number give no neurons.
    """
    return _non_empty(
        {
            place: held.rank_within(consistency) < ranks.get(place[1], 0)
            for place, held in scores.places.items()
        }
    )


def subtract(chosen: Mapping[Place, Tensor], others: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    """Neurons of `chosen` that are not in `others`."""
    result = {}
    for place, mine in chosen.items():
        kept = mine[~torch.isin(mine, others[place])] if place in others else mine
        if len(kept):
            result[place] = kept
    return result


def _non_empty(kept: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
    found = {place: held.nonzero().flatten().to(torch.int32) for place, held in kept.items()}
    return {place: indices for place, indices in found.items() if len(indices)}
