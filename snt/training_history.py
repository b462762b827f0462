"""What a training run remembers beside its deltas, and its checkpoints on disk.

A checkpoint holds deltas, optimizer, learning-rate schedule (written by the Trainer) and this
history, written last: a checkpoint without one was cut off while it was written, and is not used.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from snt.atomic import write_json
from snt.errors import FormatError
from snt.guarding import Guard, Point

LOSSES = ("refuse", "retain", "text")
_FILE, _BEST = "history.json", "best.safetensors"


@dataclass
class History:
    """Losses in nats per step, the guard's curve, and the best point's deltas while a limit holds.

    `best` are the values of the deltas in their order.
    """

    losses: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in LOSSES})
    curve: list[Point] = field(default_factory=list)
    best_point: Point | None = None
    best: list[Tensor] = field(default_factory=list)
    stopped: bool = False

    def add_point(self, point: Point, guard: Guard, values: list[Tensor]) -> None:
        """Take note of where the run stands; `values` are copied when they are the best yet."""
        self.curve.append(point)
        if guard.better(point, self.best_point):
            self.best_point = point
            self.best = [value.detach().cpu().clone() for value in values]
        self.stopped = self.stopped or guard.crossed(point)

    def save(self, checkpoint: Path) -> None:
        """Make `checkpoint` complete."""
        if self.best:
            save_file(
                {str(number): value for number, value in enumerate(self.best)}, checkpoint / _BEST
            )
        write_json(
            checkpoint / _FILE,
            {
                "losses": self.losses,
                "curve": [point.as_json() for point in self.curve],
                "best": self.best_point and self.best_point.as_json(),
            },
        )

    @classmethod
    def load(cls, checkpoint: Path) -> History:
        """Raises FormatError for a damaged file."""
        try:
            held = json.loads((checkpoint / _FILE).read_text(encoding="utf-8"))
            found = cls(
                {name: [float(value) for value in held["losses"][name]] for name in LOSSES},
                [Point(**point) for point in held["curve"]],
                held["best"] and Point(**held["best"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{checkpoint.name} is damaged; leave --resume out to begin again"
            ) from error
        if found.best_point is not None:
            saved = load_file(checkpoint / _BEST)
            found.best = [saved[str(number)] for number in range(len(saved))]
        return found

    def put_best(self, values: list[Tensor]) -> None:
        """Set deltas back to the best point."""
        with torch.no_grad():
            for value, best in zip(values, self.best, strict=True):
                value.copy_(best)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; what was cut off is removed."""
    complete = []
    for one in folder.glob("checkpoint-*"):
        if (one / _FILE).is_file():
            complete.append(one)
        else:
            shutil.rmtree(one)
    return max(complete, key=lambda one: int(one.name.rpartition("-")[2]), default=None)


def remove_others(checkpoint: Path) -> None:
    """Older checkpoints go once a newer one is complete, never before."""
    for one in checkpoint.parent.glob("checkpoint-*"):
        if one != checkpoint:
            shutil.rmtree(one)
