"""From scores to neurons: named selections, cut in milliseconds without the model.

`budget` (solve for the rank) and `contrast` (the effect size between two corpora) are this
project's; `subtract` is the paper's RSN step, N_safe \\ N_foundation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snt.anatomy import Anatomy
from snt.errors import MismatchError, RequestError
from snt.scores import Place, Scores


def consistency_order(scores: Scores, consistency: float = 1.0) -> dict[Place, Tensor]:
    """Per place (n,) float64, lower is kept first: the rank held, as a fraction of the place."""
    if not 0.0 < consistency <= 1.0:
        raise RequestError(f"consistency {consistency} is not in (0, 1]; 1.0 means every prompt")
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
    anatomy: Anatomy, order: Mapping[Place, Tensor], parameters: int
) -> dict[Place, Tensor]:
    """The first neurons in order whose parameters together stay within `parameters`.

    Ties go to the earlier layer, kind and index. Returns sorted int32 indices per non-empty place.
    Raises RequestError when not even one neuron fits.
    """
    places = sorted(order)
    values = torch.cat([order[place] for place in places])
    owner = torch.cat([torch.full((len(order[p]),), i) for i, p in enumerate(places)])
    index = torch.cat([torch.arange(len(order[place])) for place in places])
    costs = torch.tensor([anatomy.neuron_parameters(kind) for _, kind in places])[owner]
    ranked = values.argsort(stable=True)
    kept = ranked[costs[ranked].cumsum(0) <= parameters]
    if not len(kept):
        raise RequestError(
            f"a budget of {parameters} parameters holds no neuron; the smallest has "
            f"{int(costs.min())}. Raise budget="
        )
    chosen = {}
    for number, place in enumerate(places):
        mine = index[kept[owner[kept] == number]]
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
