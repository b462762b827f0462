"""Perplexity of plain text, without a template: the figure that shows language being lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from snt.backend import LoadedModel
from snt.chat import Chat
from snt.errors import RequestError
from snt.final_states import final_states
from snt.halving import Halving
from snt.objective import right_padded
from snt.processes import dealt, each, sharers

_POSITIONS = 128  # whose logits are held at once


@dataclass(frozen=True)
class Perplexity:
    """exp(nats / tokens); `nats` and `tokens` per text, the first token of each not predicted."""

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def value(self) -> float:
        """Perplexity over all tokens of all texts."""
        return math.exp(sum(self.nats) / sum(self.tokens))


def perplexity(
    model: LoadedModel,
    chat: Chat,
    texts: Sequence[str],
    longest: int = 512,
    batch_size: int = 4,
    on_batch: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Perplexity:
    """Perplexity of `texts`, each cut to `longest` tokens. Raises RequestError for too short."""
    ids = [chat.text_ids(text)[:longest] for text in texts]
    short = next((n for n, tokens in enumerate(ids) if len(tokens) < 2), None)
    if short is not None:
        raise RequestError(f"text {short + 1} has fewer than two tokens; remove it from the corpus")
    nats, halving = [0.0] * len(ids), Halving(say)
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    among = sharers(model)
    whole = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    groups = dealt(whole, among)
    batches = [right_padded([ids[n] for n in numbers], chat.pad_id) for numbers in groups]
    for numbers, hidden in zip(groups, final_states(model, batches, halving), strict=True):
        with torch.inference_mode():
            for row, number in enumerate(numbers):
                tokens = torch.tensor(ids[number][1:], device=hidden.device)
                # In pieces: the logits of a whole text would outweigh all else that is held.
                for at, piece in enumerate(torch.split(tokens, _POSITIONS)):
                    first = at * _POSITIONS
                    logits = model.logits(hidden[row, first : first + len(piece)])
                    loss = torch.nn.functional.cross_entropy(logits, piece, reduction="sum")
                    nats[number] += float(loss)
        if on_batch is not None:
            on_batch(len(numbers))
    # Each text was one process's; zeros of the others change no bit.
    nats = [sum(parts) for parts in zip(*each(nats, among), strict=True)]
    return Perplexity(tuple(nats), tuple(len(tokens) - 1 for tokens in ids))


def relative_change(before: Perplexity, after: Perplexity) -> tuple[float, float, float]:
    """after / before − 1, and its 95% interval by resampling texts in pairs (10,000 draws)."""
    import numpy as np

    tokens = np.array(before.tokens)
    change = np.array(after.nats) - np.array(before.nats)
    draws = np.random.default_rng(0).integers(0, len(tokens), size=(10_000, len(tokens)))
    resampled = np.expm1(change[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return after.value / before.value - 1.0, float(low), float(high)


def perplexity_interval(measured: Perplexity) -> tuple[float, float]:
    """95% interval of a perplexity by resampling texts (10,000 draws)."""
    import numpy as np

    tokens, nats = np.array(measured.tokens), np.array(measured.nats)
    draws = np.random.default_rng(0).integers(0, len(tokens), size=(10_000, len(tokens)))
    # Beyond 700 nats a token, which no float can hold as a perplexity, the bound is infinite.
    with np.errstate(over="ignore"):
        resampled = np.exp(nats[draws].sum(axis=1) / tokens[draws].sum(axis=1))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)
