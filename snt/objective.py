"""What a tuning minimises: refusals learnt, everything else kept as it was.

Refuse: cross-entropy of the response tokens, end of turn included. Retain: the divergence from the
model's own output with the deltas switched off, at the first positions of its own response, so that
no second copy of the model is held; the same all along plain texts, for language as such. Pure
functions on tensors, and the batches they take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snt.backend import Batch

TOP = 128
# Tokens of a response in which it is decided whether it refuses; the rest only words it.
OPENING = 5
OPENING_SHARE = 0.5


@dataclass(frozen=True)
class Pair:
    """Tokens of prompt and response, and the index at which the response starts."""

    ids: Sequence[int]
    start: int


@dataclass(frozen=True)
class Kept:
    """A prompt with the untouched model's own beginning of a response, or a plain text.

    ids: prompt and continuation tokens. start: index of the first kept position, the last token of
    the prompt. top_ids: (n, TOP) int64 and top_log: (n, TOP) float32, the most likely next tokens
    at n successive positions and their log-probabilities. opening: how many of them share
    OPENING_SHARE of the weight, none in a text.
    """

    ids: Sequence[int]
    start: int
    top_ids: Tensor
    top_log: Tensor
    opening: int = 1


@dataclass(frozen=True)
class Step:
    """One batch: token matrix with its real positions, and where each loss is read.

    refuse_at: (n, 2) int64 (row, position) whose next token is targets (n,). retain_at: (m, 2)
    with top_ids, top_log (m, TOP). The weights (n,), (m,) of each loss add up to 1 for every
    pair and prompt, divided by their number in the whole step. part: which loss this batch is of,
    `refuse`, `retain` or `text`.
    """

    batch: Batch
    refuse_at: Tensor
    targets: Tensor
    refuse_weights: Tensor
    retain_at: Tensor
    top_ids: Tensor
    top_log: Tensor
    retain_weights: Tensor
    part: str = "refuse"

    @property
    def read_at(self) -> Tensor:
        """(n + m, 2) int64 (row, position): where the step reads logits."""
        return torch.cat([self.refuse_at, self.retain_at])


def right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Tokens as a right-padded batch (B, longest)."""
    longest = max(map(len, rows), default=0)
    ids = torch.full((len(rows), longest), pad_id)
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, tokens in enumerate(rows):
        ids[number, : len(tokens)] = torch.tensor(list(tokens))
        real[number, : len(tokens)] = True
    return Batch(ids, real)


def step_of(
    pairs: Sequence[Pair],
    kept: Sequence[Kept],
    pad_id: int,
    all_pairs: int,
    all_kept: int,
    part: str | None = None,
) -> Step:
    """Pairs to refuse and prompts to keep in one batch, of `all_pairs` and `all_kept` in a step."""
    rows = [*(pair.ids for pair in pairs), *(item.ids for item in kept)]
    refuse_at = [(r, p) for r, pair in enumerate(pairs) for p in _before_response(pair)]
    targets = [token for pair in pairs for token in pair.ids[pair.start :]]
    retain_at = [
        (len(pairs) + r, item.start + n)
        for r, item in enumerate(kept)
        for n in range(len(item.top_ids))
    ]
    width = kept[0].top_ids.shape[1] if kept else 0
    empty = torch.empty(0, width)
    return Step(
        batch=right_padded(rows, pad_id),
        refuse_at=torch.tensor(refuse_at, dtype=torch.int64).reshape(-1, 2),
        targets=torch.tensor(targets, dtype=torch.int64),
        refuse_weights=_weights(
            [(len(pair.ids) - pair.start, OPENING) for pair in pairs], all_pairs
        ),
        retain_at=torch.tensor(retain_at, dtype=torch.int64).reshape(-1, 2),
        top_ids=torch.cat([empty.long(), *(item.top_ids for item in kept)]),
        top_log=torch.cat([empty, *(item.top_log for item in kept)]),
        retain_weights=_weights([(len(item.top_ids), item.opening) for item in kept], all_kept),
        part=part or ("refuse" if pairs else "retain"),
    )


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V) logits -> ids (n, TOP) and log-probabilities (n, TOP) of the most likely tokens."""
    top = logits.float().log_softmax(dim=-1).topk(min(TOP, logits.shape[-1]), dim=-1)
    return top.indices, top.values


def refusal_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy (nats a token) of (n, V) logits with (n,) targets."""
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return losses @ weights


def retain_loss(logits: Tensor, top_ids: Tensor, top_log: Tensor, weights: Tensor) -> Tensor:
    """Weighted divergence KL(before ‖ now), nats a position, all other tokens taken as one.

    logits: (n, V) now. top_ids, top_log: (n, k) from `most_likely` before. Merging the other tokens
    makes it a lower bound of the full divergence, and exact for k = V.
    """
    log_now = logits.float().log_softmax(dim=-1).gather(1, top_ids)
    before = top_log.exp()
    inside = (before * (top_log - log_now)).sum(dim=-1)
    rest_before, rest_now = (_rest(log.exp()) for log in (top_log, log_now))
    outside = rest_before * (rest_before.log() - rest_now.log())
    return (inside + outside) @ weights


def _weights(lengths: Sequence[tuple[int, int]], rows: int) -> Tensor:
    """One weight per position of rows of (length, opening), each row's adding up to 1 / `rows`.

    The first `opening` positions of a row share OPENING_SHARE of it, all others the rest: where the
    decision falls must not be outvoted by how many words follow.
    """
    weights = []
    for length, opening in lengths:
        first = min(opening, length)
        rest = length - first
        share = (OPENING_SHARE if rest else 1.0) if first else 0.0
        weights += [share / max(1, first)] * first + [(1 - share) / max(1, rest)] * rest
    return torch.tensor(weights) / max(1, rows)


def _rest(probabilities: Tensor) -> Tensor:
    # The floor keeps the logarithm finite where the listed tokens have all the mass.
    return (1.0 - probabilities.sum(dim=-1)).clamp_min(1e-6)


def _before_response(pair: Pair) -> range:
    return range(pair.start - 1, len(pair.ids) - 1)
