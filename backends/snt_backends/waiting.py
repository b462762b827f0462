"""Hidden states of all prompts between two layers: in memory, or past a limit in a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import BinaryIO

import torch
from torch import Tensor

from snt.errors import RunFailure


class HiddenStates:
    """One tensor (rows, tokens, d_model) a number, put and taken whole, in one precision.

    Beyond `limit` bytes of them all together they lie in a temporary file, read and written without
    a map, so that of those on disk one at a time is in memory. The file has no name while it is
    open, so that nothing is left where the process is killed.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, limit: int
    ) -> None:
        self.shapes, self.dtype = shapes, dtype
        sizes = [shape[0] * shape[1] * shape[2] * dtype.itemsize for shape in shapes]
        self._starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        self._held: dict[int, Tensor] = {}
        self._file: BinaryIO | None = None
        if self._starts[-1] > limit:
            # Not buffered by Python: every state is one call of the system.
            self._file = tempfile.TemporaryFile(prefix="snt-hidden-", buffering=0)  # noqa: SIM115

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def put(self, number: int, states: Tensor) -> None:
        """Raises RunFailure where the disk is full."""
        if self._file is None:
            self._held[number] = states.cpu()
            return
        raw = states.cpu().contiguous().view(-1).view(torch.uint8)
        try:
            self._file.seek(self._starts[number])
            left = memoryview(raw.numpy().data)
            while len(left):
                left = left[self._file.write(left) :]
        except OSError as error:
            raise RunFailure(
                f"hidden states of {self._starts[-1] >> 20} MiB do not fit the temporary directory "
                f"{tempfile.gettempdir()} ({os.strerror(error.errno or 0)}); set TMPDIR to a "
                "larger disk, or give fewer prompts"
            ) from error

    def take(self, number: int) -> Tensor:
        """The states last put there; in memory they are given away."""
        if self._file is None:
            return self._held.pop(number)
        raw = torch.empty(self._starts[number + 1] - self._starts[number], dtype=torch.uint8)
        self._file.seek(self._starts[number])
        left = memoryview(raw.numpy().data)
        while len(left):
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise RunFailure("the temporary file of hidden states ended early; run again")
            left = left[count:]
        return raw.view(self.dtype).view(self.shapes[number])

    def close(self) -> None:
        """Let go of memory and file."""
        self._held.clear()
        if self._file is not None:
            self._file.close()
