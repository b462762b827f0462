"""Replies in bulk: prompts of similar length together, ended at the end of a turn, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from snt.backend import Batch, LoadedModel, Sampling
from snt.batch_sizes import automatic_size, is_out_of_memory
from snt.chat import Chat
from snt.errors import RequestError, RunFailure
from snt.memory import release
from snt.processes import dealt, each, sharers
from snt.unfinished_replies import UnfinishedReplies


@dataclass(frozen=True)
class Drawing:
    """Replies drawn rather than greedy. A prompt's draws depend on `seed` and the prompt alone."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises RequestError for values that draw nothing."""
        if not 0 < self.temperature < float("inf"):
            raise RequestError(
                f"temperature {self.temperature}; give a number above 0, as in 0.7, or leave it "
                "out for greedy replies"
            )
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top-p {self.top_p}; give a share above 0 and up to 1, as in 0.9")
        if self.seed < 0:
            raise RequestError(f"seed {self.seed} is negative; choose another")

    def as_json(self) -> dict[str, Any]:
        """As it stands in the settings of saved completions."""
        return {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}

    def sampling(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Sampling:
        """The draws of a batch of prompts' tokens."""
        uniform = torch.empty(len(prompts), new_tokens, dtype=torch.float64)
        for row, prompt in enumerate(prompts):
            digest = hashlib.sha256(f"{self.seed} {list(prompt)}".encode()).digest()
            source = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            uniform[row] = torch.rand(new_tokens, dtype=torch.float64, generator=source)
        return Sampling(self.temperature, self.top_p, uniform)


def longest_first(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the prompts, so that a batch that does not fit the memory fails at once."""
    return sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Prompts as one batch (B, longest), padding before them."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, tokens in enumerate(prompts):
        ids[row, longest - len(tokens) :] = torch.tensor(list(tokens))
        real[row, longest - len(tokens) :] = True
    return Batch(ids, real)


def left_padded_batches(
    prompts: Sequence[Sequence[int]], pad_id: int, size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of prompts of similar length, longest first, with the prompts' numbers."""
    order = longest_first(prompts)
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        yield numbers, left_padded([prompts[number] for number in numbers], pad_id)


def replies(
    model: LoadedModel,
    chat: Chat,
    prompts: Sequence[str],
    new_tokens: int = 64,
    batch_size: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    *,
    drawing: Drawing | None = None,
    unfinished: UnfinishedReplies | None = None,
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[str]:
    """The model's replies, in the order of the prompts, special tokens left out.

    `batch_size` None is what the free memory holds. A batch that does not fit is tried again in
    halves, and every later batch with it; `say` is told. `unfinished` keeps the replies of
    every batch as it is done, and gives those of a stopped run that was made with the same
    `settings`. The batches are planned from all prompts and follow one another in the same order,
    so a stopped run that goes on makes the replies of one that was not stopped. Several processes
    take turns of the batches, and each gets all replies.

    Raises RequestError for a batch size below 1, MismatchError for an unfinished run of other
    settings, RunFailure when one prompt alone does not fit the memory.
    """
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"a batch of {batch_size} prompts; give --batch-size at least 1")
    if drawing is not None:
        drawing.check()
    ids = [chat.prompt_ids(prompt) for prompt in prompts]
    if not ids:
        return []
    order = longest_first(ids)
    among = sharers(model)
    # Planned alike in every process, whatever memory each of them has.
    size = batch_size or min(each(automatic_size(model, len(ids[order[0]]) + new_tokens), among))
    if among.size > 1:
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        order = [number for batch in dealt(batches, among) for number in batch]
        settings = {**(settings or {}), "process": f"{among.rank + 1}/{among.size}"}
        if unfinished is not None:
            unfinished = unfinished.of_process(among.rank + 1, among.size)
    found: dict[int, str] = {}
    if unfinished is not None:
        plan = hashlib.sha256(repr([ids[n] for n in order]).encode()).hexdigest()
        decided = {"batch_size": batch_size, "prompts": plan, **(settings or {})}
        taken = unfinished.begin(decided, len(order))
        found = dict(zip(order, taken.replies, strict=False))
        size = taken.size or size
        if found and say is not None:
            say(f"{len(found)} replies of the stopped run are taken up")
        if found and on_batch is not None:
            on_batch(len(found))
    while len(found) < len(order):
        numbers = order[len(found) : len(found) + size]
        tokens = [ids[number] for number in numbers]
        sampling = None if drawing is None else drawing.sampling(tokens, new_tokens)
        new = _fitting(model, left_padded(tokens, chat.pad_id), new_tokens, chat.stop_ids, sampling)
        if new is None:
            # Only now, when the error's frames are gone, is the failed batch's memory free.
            release()
            size = _halved(len(numbers), say)
            continue
        texts = [_text(chat, row) for row in new.tolist()]
        if unfinished is not None:
            unfinished.append(size, texts)
        found.update(zip(numbers, texts, strict=True))
        if on_batch is not None:
            on_batch(len(numbers))
    whole = {number: text for part in each(found, among) for number, text in part.items()}
    return [whole[number] for number in range(len(prompts))]


def _fitting(
    model: LoadedModel,
    batch: Batch,
    new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling | None,
) -> torch.Tensor | None:
    """The new tokens, or None where the memory does not hold the batch."""
    try:
        return model.generate(batch, new_tokens, stop_ids, sampling)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _text(chat: Chat, row: Sequence[int]) -> str:
    end = next((n for n, token in enumerate(row) if token in chat.stop_ids), len(row))
    text: str = chat.tokenizer.decode(row[:end], skip_special_tokens=True)
    return text.strip()


def _halved(rows: int, say: Callable[[str], None] | None) -> int:
    if rows == 1:
        raise RunFailure(
            "out of memory with one prompt at a time; shorten the replies (--new-tokens), take a "
            "smaller model or --dtype bfloat16"
        )
    if say is not None:
        say(f"{rows} replies at once do not fit the memory; going on with {rows // 2}")
    return rows // 2
