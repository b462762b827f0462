"""Replies in bulk: prompts of similar length together, greedy, ended at the end of a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from snt.backend import Batch, LoadedModel
from snt.chat import Chat


def left_padded_batches(
    prompts: Sequence[Sequence[int]], pad_id: int, size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of prompts of similar length, longest first, with the prompts' numbers.

    The longest come first, so that a batch that does not fit the memory fails at once.
    """
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        longest = len(prompts[numbers[0]])
        ids = torch.full((len(numbers), longest), pad_id)
        real = torch.zeros(len(numbers), longest, dtype=torch.bool)
        for row, number in enumerate(numbers):
            tokens = prompts[number]
            ids[row, longest - len(tokens) :] = torch.tensor(list(tokens))
            real[row, longest - len(tokens) :] = True
        yield numbers, Batch(ids, real)


def replies(
    model: LoadedModel,
    chat: Chat,
    prompts: Sequence[str],
    new_tokens: int = 64,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's greedy replies, in the order of the prompts, special tokens left out."""
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    found: dict[int, str] = {}
    for numbers, batch in left_padded_batches(ids, chat.pad_id, batch_size):
        new = model.generate(batch, new_tokens, chat.stop_ids)
        for row, number in zip(new.tolist(), numbers, strict=True):
            end = next((i for i, token in enumerate(row) if token in chat.stop_ids), len(row))
            text: str = chat.tokenizer.decode(row[:end], skip_special_tokens=True)
            found[number] = text.strip()
        if on_batch is not None:
            on_batch(len(numbers))
    return [found[number] for number in range(len(prompts))]
