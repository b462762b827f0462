"""The built-in backends, each described here and imported when it first loads a model.

What `snt backends` and the choice of a backend read must import neither torch nor transformers.
Not in the package's own file: there a module of the same name takes a description's place as soon
as it is imported.
"""

from __future__ import annotations

from snt.backend import LazyBackend

full = LazyBackend(
    "full",
    "the whole model in one process, full or half precision, CPU or one GPU",
    "snt_backends.full",
)
