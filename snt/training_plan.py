"""How long and how fast a tuning runs, and which pairs and prompts meet in which of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset

from snt.errors import RequestError, unknown_name
from snt.objective import Kept, Pair, Step, step_of

_Row = TypeVar("_Row", Pair, Kept)

SHAPES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. `batch` pairs, `retain_batch` kept prompts and `text_batch` plain
    texts make a step, each times `accumulate`.

    `shape` is what the learning rate does after its `warmup`, a share of all steps: it falls to
    zero along a line or a cosine, or stays.
    """

    epochs: float = 3.0
    learning_rate: float = 2e-3
    batch: int = 8
    retain_batch: int = 24
    retain_weight: float = 8.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0
    shape: str = "linear"
    accumulate: int = 1
    text_batch: int = 1
    text_weight: float = 8.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise unknown_name("schedule", self.shape, SHAPES)
        if self.accumulate < 1 or self.batch < 1:
            raise RequestError(
                f"a batch of {self.batch} accumulated {self.accumulate} times; give at least 1"
            )
        if not 0.0 <= self.warmup < 1.0:
            raise RequestError(f"a warm-up of {self.warmup}: it is a share of all steps, below 1")

    def as_json(self) -> dict[str, Any]:
        """The settings, as they stand in reports."""
        return asdict(self)

    @property
    def weights(self) -> dict[str, float]:
        """What each part of a step's loss counts, by `Step.part`."""
        return {"refuse": 1.0, "retain": self.retain_weight, "text": self.text_weight}

    def steps(self, pairs: int) -> int:
        """Optimizer steps over `pairs` training pairs."""
        return max(1, round(self.epochs * pairs / (self.batch * self.accumulate)))


# Rows that go through the model at once: a step is made of parts of rows of like length, padded to
# their own longest, so that little is padding and memory does not grow with the step.
# Plain texts go one by one: they are longer, and kept at every position.
PART = 12


class Plan(Dataset[Step]):
    """Which pairs and prompts meet in which step: each epoch a new order, the same for a seed.

    Every retain corpus has the same share of each step, however long it is. Item
    `parts * n + p` is part p of step n: pairs to refuse first, then prompts to keep, then texts.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        kept: Sequence[Sequence[Kept]],
        schedule: Schedule,
        pad_id: int,
        texts: Sequence[Kept] = (),
    ) -> None:
        self.pairs, self.kept, self.pad_id = pairs, [one for one in kept if one], pad_id
        self.texts, self.schedule = texts, schedule
        self.steps = schedule.steps(len(pairs))
        draw = torch.Generator().manual_seed(schedule.seed)
        self.batch = schedule.batch * schedule.accumulate
        self.shares = _shares(schedule.retain_batch * schedule.accumulate, len(self.kept))
        self.pair_order = _order(len(pairs), self.steps * self.batch, draw)
        self.kept_orders = [
            _order(len(one), self.steps * share, draw)
            for one, share in zip(self.kept, self.shares, strict=True)
        ]
        weighs = bool(texts) and schedule.text_weight > 0
        self.text_batch = schedule.text_batch * schedule.accumulate if weighs else 0
        self.text_order = _order(len(texts), self.steps * self.text_batch, draw)
        self.pair_parts = -(-self.batch // PART)
        self.kept_parts = -(-sum(self.shares) // PART)
        self.parts = self.pair_parts + self.kept_parts + self.text_batch

    def __len__(self) -> int:
        return self.parts * self.steps

    def __getitem__(self, item: int) -> Step:
        number, part = divmod(item, self.parts)
        if part < self.pair_parts:
            pairs = [self.pairs[i] for i in _turn(self.pair_order, number, self.batch)]
            chosen = _part(pairs, part, self.pair_parts)
            return step_of(chosen, [], self.pad_id, len(pairs), 0)
        part -= self.pair_parts
        if part < self.kept_parts:
            kept = [
                one[i]
                for one, order, share in zip(self.kept, self.kept_orders, self.shares, strict=True)
                for i in _turn(order, number, share)
            ]
            return step_of([], _part(kept, part, self.kept_parts), self.pad_id, 0, len(kept))
        at = _turn(self.text_order, number, self.text_batch)[part - self.kept_parts]
        return step_of([], [self.texts[at]], self.pad_id, 0, self.text_batch, part="text")


def _part(rows: Sequence[_Row], part: int, parts: int) -> list[_Row]:
    """Part `part` of `parts` as equal in size as may be, the shortest rows in the first."""
    by_length = sorted(rows, key=lambda row: len(row.ids))
    return by_length[part * len(rows) // parts : (part + 1) * len(rows) // parts]


def _turn(order: Sequence[int], number: int, size: int) -> Sequence[int]:
    return order[number * size : (number + 1) * size]


def _shares(batch: int, corpora: int) -> list[int]:
    """`batch` dealt out to corpora as evenly as it goes."""
    return [batch // corpora + (n < batch % corpora) for n in range(corpora)]


def _order(size: int, needed: int, draw: torch.Generator) -> list[int]:
    order: list[int] = []
    while size and len(order) < needed:
        order += torch.randperm(size, generator=draw).tolist()
    return order[:needed]
