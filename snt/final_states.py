"""Final hidden states of many batches, read once from a backend that goes layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from snt.backend import Batch, LoadedModel
from snt.halving import Halving


def final_states(
    model: LoadedModel, batches: Sequence[Batch], halving: Halving
) -> Iterator[Tensor]:
    """What `model.hidden` gives (B, T, d_model) of every batch in turn, without gradients.

    A backend that has `hidden_states` is given all batches at once: one that holds a layer at a
    time would otherwise read the whole model for every batch.
    Raises RunFailure where not one row fits the memory.
    """
    together: Any = getattr(model, "hidden_states", None)
    if together is not None:
        yield from together(batches)
        return
    for batch in batches:
        # Not around the yield: it would hold for whoever asks.
        with torch.inference_mode():
            hidden = halving.hidden(model, batch)
        yield hidden
