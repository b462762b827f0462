"""The built-in backends, each described here and imported when it first loads a model.

What `snt backends` and the choice of a backend read must import neither torch nor transformers.
Not in the package's own file: there a module of the same name takes a description's place as soon
as it is imported.
"""

from __future__ import annotations

import os

from snt.backend import LazyBackend, ModelSize

full = LazyBackend(
    "full",
    "the whole model in one process, full or half precision, CPU or one GPU",
    "snt_backends.full",
)
_NEEDED = {"bitsandbytes": "run: pip install 'bitsandbytes>=0.50'"}

int8 = LazyBackend(
    "int8",
    "decoder weights in 8 bits (bitsandbytes), CPU or one GPU",
    "snt_backends.quantised:int8",
    requires=_NEEDED,
    # A byte an entry, and a scale for every row.
    held_bytes=lambda size, item: (
        size.in_layers * 1006 // 1000 + (size.parameters - size.in_layers) * item
    ),
)
int4 = LazyBackend(
    "int4",
    "decoder weights in 4 bits (nf4, bitsandbytes), CPU or one GPU",
    "snt_backends.quantised:int4",
    requires=_NEEDED,
    # Half a byte an entry, and a scale for every 64.
    held_bytes=lambda size, item: (
        size.in_layers * 9 // 16 + (size.parameters - size.in_layers) * item
    ),
)
multi_gpu = LazyBackend(
    "multi-gpu",
    "the whole model in every process, batches dealt out",
    "snt_backends.multi_gpu:replicated",
    several_processes=True,
)
fsdp = LazyBackend(
    "fsdp",
    "one model over all processes, a share of every layer in each",
    "snt_backends.multi_gpu:sharded",
    several_processes=True,
    held_bytes=lambda size, item: (
        size.parameters * item // int(os.environ.get("WORLD_SIZE", "1"))
        + size.in_layers * item // size.layers
    ),
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
