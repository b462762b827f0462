"""Gradient checkpointing: what a layer computed is made again in the backward pass, not kept.

transformers' own switch needs a model in training mode and no cache; here layers stay in evaluation
mode, and the beginning that rows have in common still goes through the model once. So a layer's
part of the cache is set back to what it was before the layer ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from snt.backend import LoadedModel


@contextmanager
def recomputed(model: LoadedModel, first: int = 0) -> Iterator[None]:
    """Decoder layers from `first` on keep their input alone for the backward pass.

    Layers below the first delta have no backward pass and keep nothing anyway.
    """
    with ExitStack() as undo:
        for number in range(first, model.anatomy.layers):
            undo.callback(_wrap(model.module(number, ""), number))
        yield


def _wrap(layer: nn.Module, number: int) -> Callable[[], None]:
    own = vars(layer).get("forward")
    inner = layer.forward

    def forward(*words: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*words, **named)
        put_back = _cache_state(named.get("past_key_values"), number)

        def run(*again: Any) -> Any:
            put_back()
            return inner(*again, **named)

        return checkpoint(run, *words, use_reentrant=False, preserve_rng_state=False)

    layer.forward = forward

    def unwrap() -> None:
        del layer.forward
        if own is not None:
            layer.forward = own

    return unwrap


def _cache_state(cache: Any, number: int) -> Callable[[], None]:
    """A function that gives layer `number` of a cache the keys and values that it has now."""
    if cache is None:
        return lambda: None
    held = dict(vars(cache.layers[number])) if number < len(cache.layers) else None

    def put_back() -> None:
        if number >= len(cache.layers):
            return
        if held is None:
            cache.layers[number] = type(cache.layers[number])()
        else:
            vars(cache.layers[number]).update(held)

    return put_back
