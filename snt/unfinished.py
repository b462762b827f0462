"""What a stopped detection left: the scores so far, beside the mask that it was to become.

Batches are planned from the whole corpus and merging is exact, so a detection that goes on from
here ends with the same bytes as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snt.anatomy import Anatomy
from snt.backend import Batch
from snt.errors import FormatError, RequestError
from snt.resuming import check_begun_alike
from snt.scores_files import ScoresFile, load_scores, save_scores
from snt.tally import Tally

# A killed process loses at most so many seconds of work, and a batch.
SAVE_SECONDS = 30.0
KEY = "unfinished"


def check_resumable(work: Path) -> None:
    """Raise RequestError when there is nothing in `work` to go on from."""
    if not any(work.glob("*.scores.safetensors")):
        raise RequestError(f"there is no checkpoint in {work} to resume from; leave --resume out")


def plan_digest(batches: Sequence[Batch]) -> str:
    """SHA-256 of the tokens of every batch in order."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr(tuple(batch.input_ids.shape)).encode())
        digest.update(batch.input_ids.numpy().tobytes())
        digest.update(batch.real.numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Checkpoint:
    """The scores so far of one corpus, on disk.

    `settings` are flat JSON values that decide the scores, by name; a run with others does not
    resume. `rows` is the number of prompts in each batch of the run.
    """

    path: Path
    anatomy: Anatomy
    settings: Mapping[str, Any]
    rows: Sequence[int]
    latest: Tally = field(default_factory=Tally)
    saved: Tally = field(init=False)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.saved = self.latest

    def resume(self) -> Tally:
        """What an earlier run found, or nothing yet.

        Raises MismatchError, which names what differs, for a run with other settings, and
        FormatError for a damaged file.
        """
        if not self.path.is_file():
            return Tally()
        file = load_scores(self.path, some_layers=True)
        try:
            held = file.provenance[KEY]
            theirs, batches = dict(held["settings"]), int(held["batches"])
            dropped = tuple((int(batch), int(row)) for batch, row in held["dropped"])
            layers = tuple(map(int, held.get("layers", ())))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{self.path} is no unfinished detection; leave --resume out"
            ) from error
        check_begun_alike(f"the detection in {self.path.parent} was", theirs, self.settings)
        rows = self.rows if layers else self.rows[: max(0, batches)]
        found = {layer for layer, _ in file.scores.places}
        whole = set(layers or range(self.anatomy.layers))
        if sum(rows) != file.prompts + len(dropped) or found != whole:
            raise FormatError(f"{self.path} is damaged; leave --resume out to begin again")
        self.latest = self.saved = Tally(file.scores, batches, dropped, layers)
        return self.latest

    def on_batch(self, tally: Tally) -> None:
        """Take note of what has been found; write it when the last writing is long ago."""
        self.latest = tally
        if time.monotonic() - self.saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what has been found, atomically; nothing when nothing is new."""
        tally = self.latest
        if tally is self.saved:
            return
        progress = {
            "settings": dict(self.settings),
            "batches": tally.batches,
            "dropped": [list(one) for one in tally.dropped],
            **({"layers": list(tally.layers)} if tally.layers else {}),
        }
        save_scores(ScoresFile(self.anatomy, tally.scores, {KEY: progress}), self.path)
        self.saved, self.saved_at = tally, time.monotonic()
