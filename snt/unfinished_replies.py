"""What a stopped evaluation left: the replies so far, beside the report that they were to become.

A file is a line that says what decides the replies, then a line for every batch, in the order in
which the batches are run. The same prompt beside other prompts can have other last bits, so whole
batches are kept: a run that goes on makes the replies of one that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.errors import FormatError, RequestError, RunFailure
from snt.processes import leads, remove_tree, wait_for_all
from snt.resuming import check_begun_alike

_KEY = "unfinished replies"


def check_resumable(work: Path) -> None:
    """Raise RequestError when there is nothing in `work` to go on from."""
    if not work.is_dir():
        raise RequestError(f"there is no stopped run at {work} to resume; leave --resume out")


@contextmanager
def kept(work: Path) -> Iterator[None]:
    """Have `work` while the block runs and after it is stopped, so that any stop can be resumed.

    It goes when the block ends, and where a request could not be served and no reply was made.
    """
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except RequestError:
        with suppress(OSError):  # it holds replies
            work.rmdir()
        raise
    remove_tree(work)


def clear(work: Path) -> None:
    """Remove the replies of an earlier run."""
    if leads():
        for file in work.glob("*.jsonl"):
            file.unlink()
    wait_for_all()


@dataclass(frozen=True)
class Taken:
    """Replies of an earlier run in the order of its batches, and the size of the last batch."""

    replies: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True)
class UnfinishedReplies:
    """The replies so far of one model, on disk."""

    path: Path

    def of_process(self, number: int, count: int) -> UnfinishedReplies:
        """What process `number` of `count` keeps of its turns of the batches."""
        return UnfinishedReplies(
            self.path.with_name(f"{self.path.stem}.process-{number}-{count}.jsonl")
        )

    def begin(self, settings: Mapping[str, Any], prompts: int) -> Taken:
        """What an earlier run left, or nothing and a new file.

        `settings` are JSON values that decide the replies, by name; `prompts` is how many there
        are. Raises MismatchError, which names what differs, for a file of other settings, and
        FormatError, with the line, for a damaged one.
        """
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write({_KEY: _flat(settings)})
            return Taken()
        whole = self._whole_lines()
        rows = [self._row(number, line) for number, line in enumerate(whole, start=1)]
        theirs = rows[0].get(_KEY) if rows else None
        if not isinstance(theirs, dict):
            raise self._damaged(1, "not what decides the replies")
        # Through JSON and back, as the file's are.
        mine = json.loads(json.dumps(_flat(settings)))
        check_begun_alike(f"the replies in {self.path} were", theirs, mine)
        found: list[str] = []
        size = None
        for number, row in enumerate(rows[1:], start=2):
            texts, size = row.get("replies"), row.get("size")
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise self._damaged(number, "'replies' is not a list of strings")
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise self._damaged(number, "'size' is not a number of prompts")
            found += texts
        if len(found) > prompts:
            raise self._damaged(len(rows), f"{len(found)} replies to {prompts} prompts")
        # A line that was being written when the run stopped is no batch.
        os.truncate(self.path, sum(len(line) + 1 for line in whole))
        return Taken(tuple(found), size)

    def append(self, size: int, replies: Sequence[str]) -> None:
        """Add a batch's replies; they are on disk when this returns."""
        self._write({"replies": list(replies), "size": size})

    def _whole_lines(self) -> list[bytes]:
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise RequestError(
                f"cannot read {self.path}: {error.strerror}; check its permissions"
            ) from error

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number, f"not JSON ({error})") from None
        if not isinstance(row, dict):
            raise self._damaged(number, "not an object")
        return row

    def _damaged(self, number: int, reason: str) -> FormatError:
        return FormatError(
            f"{self.path}, line {number}: {reason}; leave --resume out to begin again"
        )

    def _write(self, row: Mapping[str, Any]) -> None:
        # Escaped, so that half of a cut-off emoji can be written too.
        line = json.dumps(row, sort_keys=True) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFailure(
                f"could not write {self.path}: {error.strerror}; free some space or choose "
                "another place with -o, and go on with --resume"
            ) from error


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings among the others, so that an error names the one that differs."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found.update(value if name == "settings" else {name: value})
    return found
