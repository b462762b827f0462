"""One layer in memory at a time: peak memory on a checkpoint of bfloat16 shards, and time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.embedded import CORPUS, MODEL
from benchmarks.random_llama import detect_apart, write_llama
from benchmarks.ratios import Row, in_turn, ratios
from snt import corpora
from snt.backend import LoadedModel, get_backend
from snt.model_refs import resolve
from snt.opening import ModelChoice, open_model
from snt.scores import Scores
from snt.scoring import common_beginning, detect_scores, group_by_length

# 1.4 billion parameters in the layers alone, 1.5 in all: 3.1 GB in bfloat16.
LAYERS, PROMPTS, TOKENS = 31, 8, 24


def rows(prompts: int, rounds: int) -> list[Row]:
    """Memory on two depths of a random Llama, then time and bits on the embedded model."""
    return [*memory(), *against_full(prompts, rounds)]


def memory() -> list[Row]:
    """Peaks above a process that has imported torch, each in a process of its own."""
    idle = idle_bytes()
    peaks, sizes, notes = [], [], []
    for layers in (LAYERS, 2 * LAYERS):
        folder = Path(tempfile.mkdtemp(prefix="snt-streaming-"))
        try:
            sizes.append(write_llama(folder, layers))
            peak, seconds = detect_apart(folder, PROMPTS, TOKENS)
        finally:
            shutil.rmtree(folder)
        peaks.append(peak - idle)
        notes.append(f"{peaks[-1] >> 20} of {sizes[-1] >> 20} MiB, {seconds:.0f} s")
    note = f"random Llama, bfloat16 in shards, {PROMPTS} prompts of {TOKENS} tokens, float32"
    return [
        Row(
            "streaming: peak above an idle import of torch / checkpoint",
            (peaks[0] / sizes[0],),
            0.25,
            True,
            f"{note}: {notes[0]}",
        ),
        Row(
            "streaming: the same, twice as deep / once",
            (peaks[1] / peaks[0],),
            1.1,
            True,
            f"libraries and scores included: {notes[1]}",
        ),
    ]


def against_full(prompts: int, rounds: int) -> list[Row]:
    """A detection with all layers in memory, and one with a layer at a time, in turn."""
    opened = open_model(ModelChoice(MODEL, offline=True), exact=True)
    texts = corpora.load(CORPUS).texts
    ids = [
        opened.chat.prompt_ids(text) for text in texts[:: max(1, len(texts) // prompts)][:prompts]
    ]
    batches = group_by_length(ids, opened.chat.pad_id)
    streamed = get_backend("streaming").load(resolve(MODEL, offline=True).directory, torch.float32)
    found: dict[str, Scores] = {}

    def detection(name: str, model: LoadedModel) -> Any:
        def run() -> None:
            beginning = common_beginning(batches)
            found[name] = detect_scores(model, batches, beginning=beginning).scores

        return run

    seconds = in_turn(
        {"full": detection("full", opened.model), "streaming": detection("streaming", streamed)},
        rounds,
    )
    differing = sum(
        not torch.equal(getattr(held, part), getattr(found["streaming"].places[place], part))
        for place, held in found["full"].places.items()
        for part in ("minimum", "worst_rank", "histogram")
    )
    note = f"{MODEL}, {CORPUS}: {len(ids)} prompts, exact, float32, the files in the page cache"
    return [
        Row(
            "streaming: detection / the same with the whole model in memory",
            ratios(seconds["streaming"], seconds["full"]),
            1.3,
            True,
            note,
        ),
        Row(
            "streaming: tensors of scores that differ from those of full",
            (float(differing),),
            0.0,
            True,
            f"{3 * len(found['full'].places)} compared to the bit",
        ),
    ]


def idle_bytes() -> int:
    """Peak resident bytes of a process that imports torch and does nothing."""
    told = "import torch; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    line = next(one for one in done.stdout.splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
