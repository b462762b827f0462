"""The retain corpus as targets: what the untouched model answers, cached once before a tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from snt.backend import LoadedModel
from snt.chat import Chat
from snt.corpora import Corpus
from snt.errors import RequestError
from snt.generation import left_padded_batches
from snt.objective import Kept, most_likely, right_padded
from snt.processes import dealt, each, sharers
from snt.progress import Progress

# Of a plain text that is kept: its language is there after a hundred words.
TEXT_TOKENS = 128
# Prompts that the untouched model answers at once, and positions whose logits exist at once.
ANSWERED = 32
_READ = 256


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
    batch_size: int = ANSWERED,
    on_batch: Callable[[int], None] | None = None,
) -> list[Kept]:
    """Targets at the first `positions` of the model's own greedy response to each prompt.

    To be called with no deltas attached, or with the deltas switched off.
    """
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    found: dict[int, Kept] = {}
    among = sharers(model)
    for numbers, batch in dealt(list(left_padded_batches(ids, chat.pad_id, batch_size)), among):
        continuations: list[list[int]] = [[] for _ in numbers]
        if positions > 1:
            new = model.generate(batch, positions - 1, chat.stop_ids)
            continuations = [_until_stop(row, chat.stop_ids) for row in new.tolist()]
        rows = [ids[n] + more for n, more in zip(numbers, continuations, strict=True)]
        with torch.inference_mode():
            hidden = model.hidden(right_padded(rows, chat.pad_id))
            starts = [len(ids[number]) - 1 for number in numbers]
            read = [hidden[row, start : len(rows[row])] for row, start in enumerate(starts)]
            # One product for all rows: the head is the largest matrix of a small model.
            some = [most_likely(model.logits(part)) for part in torch.split(torch.cat(read), _READ)]
            lengths = [len(one) for one in read]
            tops = [torch.split(torch.cat(part).cpu(), lengths) for part in zip(*some, strict=True)]
            for number, row, start, top_ids, top_log in zip(
                numbers, rows, starts, *tops, strict=True
            ):
                found[number] = Kept(row, start, top_ids.clone(), top_log.clone())
        if on_batch is not None:
            on_batch(len(numbers))
    whole = {number: one for part in each(found, among) for number, one in part.items()}
    return [whole[number] for number in range(len(prompts))]


def kept_texts(
    model: LoadedModel,
    chat: Chat,
    texts: Sequence[str],
    longest: int = TEXT_TOKENS,
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> list[Kept]:
    """Targets at every position of plain texts, cut to `longest` tokens, without a template.

    To be called with no deltas attached. Raises RequestError for a text of fewer than two tokens.
    """
    ids = [chat.text_ids(text)[:longest] for text in texts]
    short = next((n for n, tokens in enumerate(ids) if len(tokens) < 2), None)
    if short is not None:
        raise RequestError(f"text {short + 1} has fewer than two tokens; remove it from the corpus")
    found: list[Kept] = []
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        with torch.inference_mode():
            hidden = model.hidden(right_padded(rows, chat.pad_id))
            for row, tokens in enumerate(rows):
                top_ids, top_log = most_likely(model.logits(hidden[row, : len(tokens)]))
                found.append(Kept(tokens, 0, top_ids.cpu().clone(), top_log.cpu().clone(), 0))
        if on_batch is not None:
            on_batch(len(rows))
    return found


def _until_stop(row: list[int], stops: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(row) if token in stops), len(row))
    return row[:end]
