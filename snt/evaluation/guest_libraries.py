"""Other libraries at work within snt: without bars and logging of their own, leaving no trace."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def guest(*loggers: str) -> Iterator[None]:
    """Run another library's work in the block: its progress bars are off, what it prints is lost
    (standard output is for snt's result) and of its loggers only errors are heard; afterwards
    random generators and determinism are as they were before.

    Such libraries seed every generator there is, which must not reach what else is drawn.
    """
    import numpy as np
    import torch
    from tqdm.std import tqdm

    bars: Any = tqdm
    begin = bars.__init__

    def silent(bar: Any, *items: Any, **options: Any) -> None:
        begin(bar, *items, **{**options, "disable": True})

    levels = {name: logging.getLogger(name).level for name in loggers}
    python, arrays = random.getstate(), np.random.get_state()
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(), redirect_stdout(io.StringIO()):
        try:
            bars.__init__ = silent
            for name in loggers:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            bars.__init__ = begin
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            random.setstate(python)
            np.random.set_state(arrays)
            torch.use_deterministic_algorithms(strict, warn_only=warns)
