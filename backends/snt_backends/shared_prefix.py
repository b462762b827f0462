"""Rows that begin alike: the beginning goes through the model once, not once a row.

A chat template opens every prompt with the same tokens (in SmolLM2's case more than half of a short
prompt). In a causal model what a token computes depends on what stands before it alone, so the
beginning's keys and values serve every row, in the backward pass too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from snt.backend import Batch
from snt.beginnings import alike, worth


def shared_length(batch: Batch) -> int:
    """Tokens that all rows begin with, every row keeping at least one of its own; 0 if too few."""
    if len(batch.real) < 2 or not bool(batch.real[:, 0].all()):
        return 0
    whole = int(batch.real.all(dim=0).long().cumprod(dim=0).sum())
    shortest = int(batch.real.sum(dim=1).min())
    return worth(min(alike(batch.input_ids), whole, shortest - 1))


def repeated(beginning: DynamicCache, rows: int) -> DynamicCache:
    """A cache of `rows` rows that all begin as the one of `beginning` does, which is left alone."""
    cache = DynamicCache()
    layers: list[Any] = beginning.layers
    for number, layer in enumerate(layers):
        keys, values = (part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values))
        cache.update(keys, values, number)
    return cache


def common_beginning(batch: Batch) -> int:
    """Real tokens that the rows of a left-padded batch begin with; 0 if too few are worth it."""
    real = batch.real.long()
    if len(real) < 2:
        return 0
    shortest = int(real.sum(dim=1).min())
    first = real.argmax(dim=1, keepdim=True)
    ahead = torch.arange(shortest, device=real.device)
    starts = batch.input_ids.gather(1, first + ahead)
    return worth(min(alike(starts), shortest - 1))


def hidden_states(decoder: Any, batch: Batch) -> Tensor:
    """Final hidden states (B, T, d_model) of a batch, its common beginning computed once."""
    length = shared_length(batch)
    mask = batch.real.long()
    if not length:
        output = decoder(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
        plain: Tensor = output.last_hidden_state
        return plain
    rows = len(batch.real)
    cache = DynamicCache()
    first = decoder(
        input_ids=batch.input_ids[:1, :length], past_key_values=cache, use_cache=True
    ).last_hidden_state
    cache.batch_repeat_interleave(rows)
    rest = decoder(
        input_ids=batch.input_ids[:, length:],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first.expand(rows, -1, -1), rest], dim=1)
