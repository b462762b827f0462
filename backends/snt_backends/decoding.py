"""Replies token by token: rows that have ended leave the batch, and what all begin with runs once.

transformers' own loop pads ended rows on until the last one ends, copies the whole cache at every
step, and runs a chat template's beginning once a row. Greedy tokens are the same (a tie in half
precision may fall the other way: another batch has other last bits).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from snt.backend import Batch, Sampling
from snt_backends.shared_prefix import common_beginning

# Rows leave once so large a share of those held has ended; leaving copies the rest of the cache.
_ENDED = 0.125


class _Reserved(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer's keys and values in buffers of their final length: a step copies its own alone."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.length = capacity, 0
        self.buffers: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in keys and values (B, G, t, D); returns all so far (B, G, T, D), as views."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shapes = [(*one.shape[:2], self.capacity, one.shape[-1]) for one in new]
            self.buffers = tuple(
                one.new_empty(shape) for one, shape in zip(new, shapes, strict=True)
            )
        end = self.length + key_states.shape[-2]
        for buffer, one in zip(self.buffers, new, strict=True):
            buffer[:, :, self.length : end] = one
        self.length = end
        keys, values = (buffer[:, :, :end] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def select(self, rows: Tensor) -> None:
        """Keep `rows`, which may repeat."""
        self.buffers = tuple(buffer[rows] for buffer in self.buffers)


def continuations(
    model: Any,
    batch: Batch,
    new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
) -> Tensor:
    """What `model` says after each row of a left-padded batch: (B, ≤ new_tokens) int64.

    model: a causal language model of transformers whose layers all keep keys and values. A row ends
    with its stop token and is filled up with the first of `stop_ids`.
    """
    rows, columns = batch.real.shape
    capacity = columns + new_tokens - 1
    turn = _turn(model.config)
    cache, ids, real, positions = _begun(model, batch, capacity, turn)
    stops = torch.tensor(list(stop_ids), device=ids.device)
    found = ids.new_full((rows, new_tokens), stop_ids[0] if len(stop_ids) else 0)
    held = torch.arange(rows, device=ids.device)  # which row of the batch each row of the cache is
    going = torch.ones(rows, dtype=torch.bool, device=ids.device)
    steps = 0
    for step in range(new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=real,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        token = logits.argmax(dim=-1) if sampling is None else drawn(logits, sampling, step, held)
        found[held[going], step] = token[going]
        going = going & ~torch.isin(token, stops)
        steps = step + 1
        left = int(going.sum())
        if not left or steps == new_tokens:
            break
        if left <= (1 - _ENDED) * len(held):
            kept = going.nonzero().flatten()
            for layer in cache.layers:
                layer.select(kept)
            held, token, going = held[kept], token[kept], going[kept]
            real, positions = real[kept], positions[kept]
        ids = token[:, None]
        real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
        positions = positions[:, -1:] + 1
        if turn is not None and int(positions.max()) == turn:
            # The rotary embedding changes here, for every position: what is cached has the old one.
            ids = torch.cat([batch.input_ids, found[:, :steps]], dim=1)[held]
            real = torch.cat([batch.real, batch.real.new_ones(rows, steps)], dim=1)[held].long()
            cache, positions = _empty(model, capacity), _positions(real)
    return found[:, :steps]


def drawn(logits: Tensor, sampling: Sampling, step: int, rows: Tensor) -> Tensor:
    """A token for every row by inverting the distribution at the row's own uniform number.

    logits: (B, vocabulary). sampling.uniform: (rows of the whole batch, steps), so that a row draws
    alike whatever stands beside it. rows: (B,) which of them these are. Nucleus sampling (Holtzman
    et al. 2020): the fewest tokens whose probabilities reach `top_p`.
    """
    ordered, tokens = (logits.float() / sampling.temperature).sort(dim=-1, descending=True)
    upto = ordered.softmax(dim=-1).double().cumsum(dim=-1)
    # Tokens before the one with which the sum reaches top_p, and that one.
    count = (upto < sampling.top_p).sum(dim=-1, keepdim=True).clamp(max=upto.shape[-1] - 1)
    total = upto.gather(-1, count)
    aim = sampling.uniform.to(upto)[rows, step, None] * total
    return tokens.gather(-1, torch.searchsorted(upto, aim, right=True).clamp(max=count))[:, 0]


def _begun(
    model: Any, batch: Batch, capacity: int, turn: int | None
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A cache, and the tokens, mask and positions of what is still to be run.

    A common beginning is run once and goes to the first columns of every row; the padding comes
    after it. Positions are given, so only a sliding window would see the gap, or a model that
    counts columns instead (MPT).
    """
    cache = _empty(model, capacity)
    real = batch.real.long()
    positions = _positions(real)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    alike = all(limit is None or capacity <= limit for limit in (window, turn))
    placed = "position_ids" in inspect.signature(model.base_model.forward).parameters
    length = common_beginning(batch) if alike and placed else 0
    if not length:
        return cache, batch.input_ids, real, positions
    first = int(real[0].argmax())
    beginning = batch.input_ids[:1, first : first + length]
    model.base_model(input_ids=beginning, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        layer.select(torch.zeros(len(real), dtype=torch.long, device=real.device))
    # Every row has its own part at its end, and what is left of its beginning counts as padding.
    own = real[:, length:] * (positions[:, length:] >= length)
    whole = torch.cat([real.new_ones(len(real), length), own], dim=1)
    return cache, batch.input_ids[:, length:], whole, positions[:, length:]


def _empty(model: Any, capacity: int) -> Any:
    layers = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[_Reserved(capacity) for _ in range(layers)])


def _positions(real: Tensor) -> Tensor:
    """Position of every real token in its row; 0 at padding before it."""
    return (real.cumsum(dim=1) - 1).clamp(min=0)


def _turn(config: Any) -> int | None:
    """The position from which a long sequence's rotary embedding differs from a short one's."""
    config = config.get_text_config()
    given = dict(getattr(config, "rope_parameters", None) or {})
    kinds = [one for one in given.values() if isinstance(one, dict)] or [given]
    if not any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds):
        return None
    lengths = [kind.get("original_max_position_embeddings") for kind in kinds]
    fallback = getattr(config, "original_max_position_embeddings", None)
    known = [int(one) for one in (*lengths, fallback) if one is not None]
    return min(known, default=int(config.max_position_embeddings))
