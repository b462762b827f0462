"""A command started in several processes on this machine, and watched until it ends.

The processes are told who they are as torchrun tells them. One that fails or dies ends them all
within seconds, with its error; none is left behind. Imports no torch: whoever waits needs none.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from snt.errors import RequestError

MOST = 1024
# Set for the processes, which end when the one that started them has gone.
STARTER = "SNT_STARTED_BY"
_POLL = 0.1
# For the others to end by themselves: after an error that all of them find, after being told to.
_SAME_ERROR, _TOLD = 10.0, 15.0
# Errors of the request are found by every process, each at its own time.
_SHARED_CODES = (2, 3)


@dataclass(frozen=True)
class _Child:
    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None  # the leader's go where ours go


def launch(command: Sequence[str], count: int, say: Callable[[str], None]) -> int:
    """Run `command` in `count` processes; the exit code of the whole.

    Process 0 has our stdin, stdout and stderr. When another fails first, `say` is told what it
    said, and the code is its own, 1 where a signal ended it. An interruption is handed on and
    waited for. Raises RequestError for a count out of range.
    """
    if not 1 <= count <= MOST:
        raise RequestError(f"--processes {count}; give 1 to {MOST}")
    port = _free_port()
    children: list[_Child] = []
    try:
        for rank in range(count):
            children.append(_start(command, rank, count, port))
        return _watch(children, say)
    except BaseException:
        # An interruption reaches this process alone: the others are in sessions of their own.
        _end(children, signal.SIGINT)
        raise
    finally:
        _end(children, signal.SIGTERM)
        for child in children:
            if child.errors is not None:
                child.errors.close()


def end_with_starter() -> None:
    """In a process that `launch` started: end when the one that started it has gone."""
    starter = os.environ.get(STARTER)
    if starter is None:
        return

    def watch() -> None:
        while os.getppid() == int(starter):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_TOLD)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(command: Sequence[str], rank: int, count: int, port: int) -> _Child:
    threads = max(1, (os.cpu_count() or 1) // count)
    told = {
        "OMP_NUM_THREADS": str(threads),  # unless it is set
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        STARTER: str(os.getpid()),
    }
    errors = tempfile.TemporaryFile() if rank else None  # noqa: SIM115 - closed by launch
    process = subprocess.Popen(
        list(command),
        env=told,
        stdin=subprocess.DEVNULL if rank else None,
        stdout=subprocess.DEVNULL if rank else None,
        stderr=errors,
        start_new_session=True,
    )
    return _Child(rank, process, errors)


def _watch(children: Sequence[_Child], say: Callable[[str], None]) -> int:
    while True:
        failed = next((child for child in children if child.process.poll()), None)
        if failed is not None:
            return _failed(failed, children, say)
        # What the leader wrote stands; the others have nothing left to add.
        if children[0].process.returncode == 0:
            _wait(children, _TOLD)
            return 0
        time.sleep(_POLL)


def _failed(failed: _Child, children: Sequence[_Child], say: Callable[[str], None]) -> int:
    """The exit code when `failed` did first; says why, unless the leader has said it."""
    code = failed.process.returncode
    leader = children[0].process
    if failed.rank and code in _SHARED_CODES:
        _wait(children[:1], _SAME_ERROR)
    by_itself = leader.poll()
    _end(children, signal.SIGTERM)
    if by_itself is not None and by_itself > 0 and (failed.rank == 0 or by_itself == code):
        return by_itself
    name = f"process {failed.rank + 1} of {len(children)}"
    if code < 0:
        say(
            f"{name} was ended by {signal.Signals(-code).name}; the others were stopped, and "
            "nothing half-written is left (detect and tune: --resume goes on)"
        )
        return 1
    said = ""
    if failed.errors is not None:
        failed.errors.seek(0)
        said = failed.errors.read().decode(errors="replace").strip()[-4000:]
    say(f"{name} failed with exit code {code}" + (f":\n{said}" if said else ""))
    return code


def _wait(children: Sequence[_Child], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(child.process.poll() is None for child in children):
        time.sleep(_POLL)


def _end(children: Sequence[_Child], how: signal.Signals) -> None:
    """Tell those that still run, wait for them, and kill what does not listen."""
    running = [child for child in children if child.process.poll() is None]
    for child in running:
        child.process.send_signal(how)
    _wait(running, _TOLD)
    for child in running:
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait()


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port: int = asked.getsockname()[1]
        return port


def this_command() -> list[str]:
    """The command line of this process, as every process of a launch is to run it."""
    # -P: a folder of the user is no place to import from.
    debug = ["--debug"] if "--debug" in sys.orig_argv else []
    return [sys.executable, "-P", "-m", "snt", *debug, *sys.argv[1:]]
