"""Neurons removed in memory, for a while and for measuring only: nothing here writes a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from snt.backend import LoadedModel
from snt.deltas import masked_slices
from snt.errors import RunFailure
from snt.masks import NeuronMask


@contextmanager
def deactivated(model: LoadedModel, mask: NeuronMask) -> Iterator[None]:
    """Run the model as if the mask's neurons had weights and biases of zero.

    A row's output is set to zero, which is what a zero row and bias compute; a feed-forward
    neuron's column needs nothing then, for its input is zero. Raises RunFailure when a hook does
    not attach.
    """
    rows = {key: at for key, at in masked_slices(mask).items() if key.axis == "rows"}
    hooks = []
    try:
        for key, at in rows.items():
            module = model.module(key.layer, key.module)
            hooks.append(module.register_forward_hook(_silence(at.long().to(model.device))))
        if len(hooks) != len(rows):
            raise RunFailure(f"{len(hooks)} of {len(rows)} modules could be hooked")
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _silence(rows: Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return torch.index_fill(output, -1, rows, 0.0)

    return hook
