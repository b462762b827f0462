"""Controls of a mask that are not drawn at random: as many neurons in every layer and kind.

Both avoid the mask's own neurons. Where a layer and kind has not enough others, all others are
taken and the control is smaller there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snt.errors import MismatchError
from snt.masks import NeuronMask
from snt.scores import Place, Scores
from snt.selection import consistency_order


def magnitude_like(mask: NeuronMask, scores: Scores) -> NeuronMask:
    """For each neuron of `mask` the one outside it that is most nearly as important.

    Important as `scores`, of the mask's own corpus, say: by mean log-rank within layer and kind.
    The nearest and not the loudest, so that the control differs from the mask in which neurons it
    holds and not in how loud they are: the loudest are those of `foundation_like`, and without them
    no language is left to compare. For a mask of the loudest neurons themselves the two are one.
    """

    def nearest(place: Place, mine: Tensor) -> Tensor:
        mean = scores.places[place].mean_log_rank()[0]
        free = torch.ones(len(mean), dtype=torch.bool)
        free[mine] = False
        chosen = []
        for neuron in mine[mean[mine].argsort(stable=True)][: int(free.sum())].tolist():
            distance = (mean - mean[neuron]).abs().masked_fill(~free, torch.inf)
            taken = int(distance.argmin())
            free[taken] = False
            chosen.append(taken)
        return torch.tensor(chosen, dtype=torch.int64)

    return _like(mask, scores, nearest, {"rule": "magnitude", "by": "mean log-rank"})


def foundation_like(mask: NeuronMask, against: Scores, consistency: float = 1.0) -> NeuronMask:
    """The neurons outside `mask` that are most consistently important on the second corpus.

    By the rank that `consistency` of its prompts do not exceed: what the paper calls foundation
    neurons (Zhao et al., ICLR 2025), as many in every layer and kind as the mask holds.
    """
    order = consistency_order(against, consistency)

    def first(place: Place, mine: Tensor) -> Tensor:
        ranked = order[place].argsort(stable=True)
        return ranked[~torch.isin(ranked, mine)][: len(mine)]

    return _like(mask, against, first, {"rule": "foundation", "consistency": consistency})


def _like(
    mask: NeuronMask,
    scores: Scores,
    choose: Callable[[Place, Tensor], Tensor],
    rule: dict[str, Any],
) -> NeuronMask:
    neurons = {}
    for place, mine in sorted(mask.neurons.items()):
        if place not in scores.places:
            raise MismatchError(
                f"the scores hold nothing for layer {place[0]}, {place[1]}, of which the mask has "
                f"{len(mine)} neurons; take the scores that were written with it"
            )
        found = choose(place, mine.long())
        if len(found):
            neurons[place] = found.sort().values.to(torch.int32)
    kept = {key: mask.provenance[key] for key in ("model", "fingerprint") if key in mask.provenance}
    provenance = {
        **kept,
        "selection": {**rule, "matched": "layer and kind"},
        "parents": [dict(mask.provenance)],
    }
    return NeuronMask(mask.anatomy, neurons, provenance=provenance)
