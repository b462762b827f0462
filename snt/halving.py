"""Batches that the memory does not hold, in halves: fewer rows at a time, the same result.

A row of a smaller batch gives what it gave in the whole one, up to the last bits: products of other
shapes may add in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snt.backend import Batch, LoadedModel
from snt.batch_sizes import is_out_of_memory
from snt.errors import RunFailure
from snt.memory import release

Say = Callable[[str], None]


def in_parts(batch: Batch, parts: int) -> list[Batch]:
    """A batch in at most `parts` batches of like size, in the order of its rows."""
    each = -(-len(batch.real) // min(parts, len(batch.real)))
    pairs = zip(torch.split(batch.input_ids, each), torch.split(batch.real, each), strict=True)
    return [Batch(ids, real) for ids, real in pairs]


def ran(work: Callable[[], None]) -> bool:
    """Do `work`; False, and its memory free again, where there was not enough."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    # Only now, when the error's frames are gone, is what they held free.
    release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def more_parts(parts: int, rest: Sequence[Batch], say: Say | None) -> int:
    """Twice as many parts a batch; said the first time.

    Raises RunFailure when all batches that are left go row by row already.
    """
    if all(len(batch.real) <= parts for batch in rest):
        raise RunFailure(
            "out of memory with one prompt at a time; give shorter prompts, --dtype bfloat16 or "
            "another backend (`snt doctor` says which fit here)"
        )
    if parts == 1 and say is not None:
        say("out of memory: batches are halved from here on; results agree up to rounding")
    return 2 * parts


class Halving:
    """Final hidden states by as many rows at a time as the memory holds."""

    def __init__(self, say: Say | None = None) -> None:
        self.say, self.parts = say, 1

    def hidden(self, model: LoadedModel, batch: Batch) -> Tensor:
        """What `model.hidden` gives (B, T, d_model). Raises RunFailure where no row fits."""
        found: list[Tensor] = []

        def work() -> None:
            found.clear()
            found.extend(model.hidden(part) for part in in_parts(batch, self.parts))

        while not ran(work):
            found.clear()
            self.parts = more_parts(self.parts, [batch], self.say)
        return found[0] if len(found) == 1 else torch.cat(found)
