"""How well a model does the task: exact match of its answers, and the loss of the right ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from snt.backend import LoadedModel
from snt.chat import Chat
from snt.evaluation.perplexity import Perplexity
from snt.generation import replies
from snt.objective import Pair, right_padded
from snt.robust.answers import gives
from snt.robust.task_data import Task
from snt.robust.task_training import examples_of

_BATCH = 8


@dataclass(frozen=True)
class TaskScore:
    """`correct` and `replies` per item, empty for a task without answers; the responses' loss."""

    correct: tuple[bool, ...]
    replies: tuple[str, ...]
    responses: Perplexity


def score_task(
    model: LoadedModel,
    chat: Chat,
    task: Task,
    new_tokens: int,
    longest: int,
    batch_size: int | None,
    on_batch: Callable[[int], None] | None = None,
) -> TaskScore:
    """Greedy replies of `new_tokens` at most, and the loss of responses within `longest` tokens."""
    items, correct, found = task.evaluation, [], []
    if task.exact:
        prompts = [item.prompt for item in items]
        found = replies(model, chat, prompts, new_tokens, batch_size, on_batch)
        correct = [
            gives(reply, item.answer)
            for reply, item in zip(found, items, strict=True)
            if item.answer is not None
        ]
    pairs, _ = examples_of(chat, items, longest)
    return TaskScore(tuple(correct), tuple(found), response_loss(model, chat, pairs))


def response_loss(model: LoadedModel, chat: Chat, pairs: Sequence[Pair]) -> Perplexity:
    """Nats of each response given its prompt, end of turn included, and its tokens."""
    nats = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda n: len(pairs[n].ids))
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            numbers = order[start : start + _BATCH]
            hidden = model.hidden(right_padded([pairs[n].ids for n in numbers], chat.pad_id))
            for row, number in enumerate(numbers):
                pair = pairs[number]
                targets = torch.tensor(list(pair.ids[pair.start :]), device=hidden.device)
                logits = model.logits(hidden[row, pair.start - 1 : len(pair.ids) - 1])
                loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
                nats[number] = float(loss)
    return Perplexity(tuple(nats), tuple(len(pair.ids) - pair.start for pair in pairs))
