"""The built-in backends, each described here and imported when it first loads a model.

What `snt backends` and the choice of a backend read must import neither torch nor transformers.
Not in the package's own file: there a module of the same name takes a description's place as soon
as it is imported.
"""

from __future__ import annotations

from snt.backend import LazyBackend, ModelSize

full = LazyBackend(
    "full",
    "the whole model in one process, full or half precision, CPU or one GPU",
    "snt_backends.full",
)


def _one_layer(size: ModelSize, item: int) -> int:
    """A layer in the precision of the computation, and the next as it is stored."""
    stored = size.stored / size.parameters
    return int(size.in_layers / size.layers * (item + stored))


streaming = LazyBackend(
    "streaming",
    "one layer in memory at a time, for models larger than memory; detects and measures",
    "snt_backends.streaming",
    abilities=("detect", "score", "patch"),
    held_bytes=_one_layer,
)
