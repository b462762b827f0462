"""Random masks: what a mask of the same make-up does by chance, the control of every claim."""

from __future__ import annotations

import torch

from snt.errors import RequestError
from snt.masks import NeuronMask

_LARGEST_SEED = 2**63 - 1


def random_like(mask: NeuronMask, seed: int) -> NeuronMask:
    """As many neurons of every layer and kind as `mask` has, drawn uniformly, without scores.

    The draw is from all neurons there, those of `mask` included, so that its overlap with `mask`
    is what chance gives. The same seed gives the same neurons. Raises RequestError for a seed that
    is negative or beyond 63 bits.
    """
    if not 0 <= seed <= _LARGEST_SEED:
        raise RequestError(f"seed {seed} is not in 0 to {_LARGEST_SEED}; choose another")
    generator = torch.Generator().manual_seed(seed)
    neurons = {}
    for place in sorted(mask.neurons):
        count = len(mask.neurons[place])
        drawn = torch.randperm(mask.anatomy.size(place[1]), generator=generator)[:count]
        neurons[place] = drawn.sort().values.to(torch.int32)
    kept = {key: mask.provenance[key] for key in ("model", "fingerprint") if key in mask.provenance}
    provenance = {
        **kept,
        "selection": {"rule": "random", "matched": "layer and kind"},
        "seed": seed,
        "parents": [dict(mask.provenance)],
    }
    return NeuronMask(mask.anatomy, neurons, provenance=provenance)
