"""One command in several processes: who this one is, and how it meets the others.

Every process runs the whole command and takes its turn of the batches; what each found is gathered,
so that all of them go on with the same. Process 0 leads: it alone prints and writes results. Who a
process is stands in its environment, as torchrun, accelerate and `snt.launching` set it
(RANK, WORLD_SIZE, LOCAL_RANK); nothing here imports torch before a model is opened.
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from snt.errors import RequestError, RunFailure

if TYPE_CHECKING:
    from snt.backend import LoadedModel
    from snt.scores import Scores

T = TypeVar("T")

# How long a process waits for the others. One that died is noticed at once, by its closed
# connection and by whoever started it; this is for one that lives and does nothing.
PATIENCE = timedelta(minutes=30)
_OWN_FILES: ContextVar[bool] = ContextVar("own_files", default=False)


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, the `local_rank`th on its machine; all counted from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0


def world() -> World:
    """This process among those of its command. Raises RequestError for a broken environment."""
    told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if told[0] is None or told[1] is None:
        return World()
    try:
        rank, size, local = (int(text or 0) for text in told)
    except ValueError:
        rank, size, local = -1, 0, 0
    if not 0 <= rank < size:
        raise RequestError(
            f"the environment says RANK={told[0]}, WORLD_SIZE={told[1]}, LOCAL_RANK={told[2]}; "
            "start the command with --processes, torchrun or accelerate launch"
        )
    return World(rank, size, local)


def leads() -> bool:
    """Whether this process prints and writes."""
    return world().leads


def writes() -> bool:
    """Whether a file written now is kept: the leader's, or one that is this process's own."""
    return _OWN_FILES.get() or leads()


@contextmanager
def own_files() -> Iterator[None]:
    """Files written in the block are this process's own, under a name no other one uses."""
    token = _OWN_FILES.set(True)
    try:
        yield
    finally:
        _OWN_FILES.reset(token)


def remove_tree(path: Path) -> None:
    """Remove a directory, where this process leads; nothing when there is none."""
    if leads():
        shutil.rmtree(path, ignore_errors=True)


def join() -> World:
    """Meet the other processes: nccl where there are GPUs, else gloo. Once, before loading.

    Raises RequestError for more processes on a machine than it has GPUs, RunFailure when not all
    of them came.
    """
    here = world()
    if here.size == 1:
        return here
    import torch
    import torch.distributed as dist
    from accelerate.state import PartialState

    if not dist.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu and here.local_rank >= torch.cuda.device_count():
            raise RequestError(
                f"{here.local_rank + 1} or more processes on a machine with "
                f"{torch.cuda.device_count()} GPUs; start one process a GPU"
            )
        state = PartialState(cpu=not on_gpu, timeout=PATIENCE)
        if on_gpu:
            torch.cuda.set_device(state.device)
        atexit.register(_leave)
    if dist.get_world_size() != here.size or dist.get_rank() != here.rank:
        raise RunFailure(
            f"process {here.rank + 1} of {here.size} finds itself to be {dist.get_rank() + 1} of "
            f"{dist.get_world_size()}; start the command with --processes, torchrun or "
            "accelerate launch --multi_gpu"
        )
    return here


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def sharers(model: LoadedModel) -> World:
    """The processes among which batches are dealt: none but this where all must go in step.

    Processes that hold parts of one model run every batch together, so nothing is dealt.
    """
    return World() if getattr(model, "in_step", False) else world()


def dealt(items: Sequence[T], among: World) -> Sequence[T]:
    """This process's turn of `items`, which every process has.

    Items go by length, so the turn is taken forwards and backwards (0 1 1 0 0 1 …): the last in
    every round would else have the longest each time.
    """
    size, forth, back = among.size, among.rank, among.size - 1 - among.rank
    rounds = range(-(-len(items) // size))
    turns = [size * number + (back if number % 2 else forth) for number in rounds]
    return [items[turn] for turn in turns if turn < len(items)]


def each(mine: T, among: World) -> list[T]:
    """What every process gives, by rank, in every process."""
    if among.size == 1:
        return [mine]
    import torch.distributed as dist

    every: list[Any] = [None] * among.size
    dist.all_gather_object(every, mine)
    return every


def wait_for_all() -> None:
    """Go on when every process is here."""
    each(None, world())


def merged_scores(mine: Scores, sizes: dict[tuple[int, str], int], among: World) -> Scores:
    """The scores of all processes' prompts, in every process; merging is exact in any order.

    `sizes`: neurons of every place. Tensors are reduced one by one, so that no process ever holds
    another's scores beside its own.
    """
    if among.size == 1:
        return mine
    import torch
    import torch.distributed as dist

    from snt.scores import BINS, NeuronScores, Scores

    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    found = {}
    for place, size in sorted(sizes.items()):
        held = mine.places.get(place) or NeuronScores(
            torch.full((size,), torch.inf),
            torch.zeros(size, dtype=torch.int32),
            torch.zeros(size, BINS, dtype=torch.int32),
        )
        parts = []
        for tensor, how in (
            (held.minimum, dist.ReduceOp.MIN),
            (held.worst_rank, dist.ReduceOp.MAX),
            (held.histogram.int(), dist.ReduceOp.SUM),
        ):
            moved = tensor.to(device, copy=True).contiguous()
            dist.all_reduce(moved, op=how)
            parts.append(moved.cpu())
        whole = NeuronScores(*parts)
        if whole.prompts:
            found[place] = whole
    return Scores(found)
