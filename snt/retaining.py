"""The retain corpus as targets: what the untouched model answers, cached once before a tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from snt.backend import LoadedModel
from snt.chat import Chat
from snt.corpora import Corpus
from snt.generation import left_padded_batches
from snt.objective import Kept, most_likely, right_padded
from snt.progress import Progress


def kept_corpora(
    model: LoadedModel, chat: Chat, kept: Sequence[Corpus], positions: int, progress: Progress
) -> list[list[Kept]]:
    """The targets of every retain corpus, each with a progress bar of its own."""
    found = []
    for corpus in kept:
        with progress.task(f"answers, {corpus.name}", len(corpus.texts), "prompts") as advance:
            found.append(kept_prompts(model, chat, corpus.texts, positions, on_batch=advance))
    return found


def kept_prompts(
    model: LoadedModel,
    chat: Chat,
    prompts: Sequence[str],
    positions: int = 1,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Kept]:
    """Targets at the first `positions` of the model's own greedy response to each prompt.

    To be called with no deltas attached, or with the deltas switched off.
    """
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    found: dict[int, Kept] = {}
    for numbers, batch in left_padded_batches(ids, chat.pad_id, batch_size):
        continuations: list[list[int]] = [[] for _ in numbers]
        if positions > 1:
            new = model.generate(batch, positions - 1, chat.stop_ids)
            continuations = [_until_stop(row, chat.stop_ids) for row in new.tolist()]
        rows = [ids[n] + more for n, more in zip(numbers, continuations, strict=True)]
        with torch.inference_mode():
            hidden = model.hidden(right_padded(rows, chat.pad_id))
            for row, number in enumerate(numbers):
                start = len(ids[number]) - 1
                top_ids, top_log = most_likely(model.logits(hidden[row, start : len(rows[row])]))
                found[number] = Kept(rows[row], start, top_ids.cpu().clone(), top_log.cpu().clone())
        if on_batch is not None:
            on_batch(len(numbers))
    return [found[number] for number in range(len(prompts))]


def _until_stop(row: list[int], stops: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in stops), len(row))
    return row[:end]
