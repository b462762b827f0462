"""A tuning's steps in several processes: every part of a step has its rows dealt out.

The weights of a part's rows are those of the whole step, so the processes' gradients add up to the
gradient of one process. Every process has as many parts as one process would, with a row in each:
where a model's weights are dealt out too, all must make the same forwards.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from snt.backend import Batch
from snt.objective import Step


def rows_of(step: Step, rank: int, size: int) -> Step:
    """The rows rank, rank + size, … of a batch, with what is read there.

    Where there are none, the first row with weights of zero stands for them.
    """
    count = len(step.batch.real)
    chosen = torch.arange(count)[rank::size]
    idle = not len(chosen)
    if idle:
        chosen = torch.zeros(1, dtype=torch.int64)
    new_row = torch.full((count,), -1)
    new_row[chosen] = torch.arange(len(chosen))
    longest = int(step.batch.real[chosen].any(dim=0).nonzero().max()) + 1
    refuse, refuse_at = _read(step.refuse_at, new_row)
    retain, retain_at = _read(step.retain_at, new_row)
    refuse_weights, retain_weights = step.refuse_weights[refuse], step.retain_weights[retain]
    return replace(
        step,
        batch=Batch(step.batch.input_ids[chosen, :longest], step.batch.real[chosen, :longest]),
        refuse_at=refuse_at,
        targets=step.targets[refuse],
        refuse_weights=0 * refuse_weights if idle else refuse_weights,
        retain_at=retain_at,
        top_ids=step.top_ids[retain],
        top_log=step.top_log[retain],
        retain_weights=0 * retain_weights if idle else retain_weights,
    )


class DealtSteps(Dataset[Step]):
    """A plan for `size` processes: item `size * n + r` is what process r has of the plan's item n.

    The Trainer gives process r every item whose number leaves r when divided by `size`.
    """

    def __init__(self, plan: Dataset[Step], length: int, size: int) -> None:
        self.plan, self.length, self.size = plan, length, size

    def __len__(self) -> int:
        return self.length * self.size

    def __getitem__(self, item: int) -> Step:
        number, rank = divmod(item, self.size)
        return rows_of(self.plan[number], rank, self.size)


def _read(at: Tensor, new_row: Tensor) -> tuple[Tensor, Tensor]:
    """Which of (n, 2) places (row, position) are in the rows kept, and where they are there."""
    rows = new_row[at[:, 0]]
    kept = rows >= 0
    return kept, torch.stack([rows[kept], at[kept, 1]], dim=1)
