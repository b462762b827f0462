"""Neurons removed in memory, for a while and for measuring only: nothing here writes a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from snt.backend import LoadedModel
from snt.deltas import SliceKey, masked_slices
from snt.errors import RunFailure
from snt.masks import NeuronMask


@contextmanager
def deactivated(model: LoadedModel, mask: NeuronMask) -> Iterator[None]:
    """Run the model as if the mask's neurons had weights and biases of zero.

    Of a module, a row's output and a column's input are set to zero, which is what zero weights
    compute; a norm after a projection sees those zeros. Experts are parameters of one operation,
    with nothing between to hook: the columns of theirs are zero meanwhile, and after the block what
    they were, bit for bit. Raises RunFailure when a hook does not attach.
    """
    slices = masked_slices(mask)
    inside = {key: at for key, at in slices.items() if mask.anatomy.in_experts(key.module)}
    hooks, saved = [], []
    try:
        for key, at in slices.items():
            if key in inside:
                continue
            module = model.module(key.layer, key.module)
            places = at.long().to(model.device)
            if key.axis == "rows":
                hooks.append(module.register_forward_hook(_silence_output(places)))
            else:
                hooks.append(module.register_forward_pre_hook(_silence_input(places)))
        if len(hooks) != len(slices) - len(inside):
            raise RunFailure(f"{len(hooks)} of {len(slices) - len(inside)} modules could be hooked")
        for key, at in inside.items():
            # What gate and up compute goes nowhere once the column is zero.
            if key.axis == "cols":
                saved.append(_silence_experts(model, key, at.long().to(model.device)))
        yield
    finally:
        for weight, experts, columns, values in saved:
            weight[experts, :, columns] = values
        for hook in hooks:
            hook.remove()


def _silence_output(rows: Tensor) -> Any:
    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return torch.index_fill(output, -1, rows, 0.0)

    return hook


def _silence_input(columns: Tensor) -> Any:
    def hook(_module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.index_fill(inputs[0], -1, columns, 0.0), *inputs[1:])

    return hook


def _silence_experts(
    model: LoadedModel, key: SliceKey, at: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Zero columns of all experts' (E, out, in) weight; returns what puts them back."""
    module, _, name = key.module.rpartition(".")
    weight: Tensor = getattr(model.module(key.layer, module), name).data
    experts, columns = at // weight.shape[-1], at % weight.shape[-1]
    values = weight[experts, :, columns].clone()
    weight[experts, :, columns] = 0
    return weight, experts, columns, values
