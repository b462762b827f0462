"""Detection in two processes of one thread each against one process of one thread.

Whole commands (`snt detect`), in turn: with the start-up and the loading, which both have, and by
the seconds from the first batch to the last, which is what the processes share. Beside them, two
detections of one process each that have nothing to do with each other, at the same time: what the
machine itself allows, where its cores share caches and memory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.ratios import Row, ratios
from snt import corpora

MODEL, CORPUS = "smollm2-135m", "harmful/detect"
# Scoring alone is timed inside the command, by the process that leads, which ends it when the
# scores of all processes are merged.
_TIMED = """
import sys, time
import snt.detection as detection
inner = detection.score_sides
def timed(*words, **named):
    started = time.perf_counter()
    found = inner(*words, **named)
    sys.stderr.write(f"scoring took {time.perf_counter() - started:.6f} s\\n")
    return found
detection.score_sides = timed
from snt.cli import main
from snt.launching import launch
count = int(sys.argv.pop(1))
if count == 0:
    main()
else:
    code = sys.argv.pop(1)
    sys.exit(launch([sys.executable, "-c", code, "0", *sys.argv[1:]], count, sys.stderr.write))
"""


def rows(prompts: int, rounds: int) -> list[Row]:
    """The speed-up with and without loading, and whether the files are the same."""
    texts = corpora.load(CORPUS).texts
    sample = texts[:: max(1, len(texts) // prompts)][:prompts]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    scoring: dict[int, list[float]] = {1: [], 2: []}
    same, allowed = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.txt").write_text(
            "".join(f"{' '.join(text.split())}\n" for text in sample), encoding="utf-8"
        )
        for _ in range(rounds):
            for count in (1, 2):
                whole, inside = _detect(folder, count)
                seconds[count].append(whole)
                scoring[count].append(inside)
            with ThreadPoolExecutor() as pool:
                both = list(pool.map(lambda name: _detect(folder, 1, name), ("one", "other")))
            allowed.append(2 * scoring[1][-1] / (sum(inside for _, inside in both) / 2))
            files = [sorted((folder / str(count)).iterdir()) for count in (1, 2)]
            same.append(
                [one.name for one in files[0]] == [one.name for one in files[1]]
                and all(
                    one.read_bytes() == two.read_bytes() for one, two in zip(*files, strict=True)
                )
            )
    note = f"{MODEL}, {len(sample)} prompts of {CORPUS}, one thread a process"
    return [
        Row(
            "scoring, 1 process / 2 processes",
            ratios(scoring[1], scoring[2]),
            1.8,
            False,
            f"{note}; medians {_median(scoring[1]):.1f} and {_median(scoring[2]):.1f} s",
        ),
        Row(
            "the same, start-up and loading included",
            ratios(seconds[1], seconds[2]),
            1.0,
            False,
            f"medians {_median(seconds[1]):.1f} and {_median(seconds[2]):.1f} s; its bar is only "
            "that two are not slower",
        ),
        Row(
            "two detections at once that share nothing, what they gain",
            tuple(allowed),
            1.0,
            False,
            "2 / (how many times slower each is beside the other): what the cores leave to sharing",
        ),
        Row(
            "the same bytes in mask and scores, share of the rounds",
            (sum(same) / len(same),),
            1.0,
            False,
            "1 process against 2",
        ),
    ]


def _detect(folder: Path, count: int, output: str = "") -> tuple[float, float]:
    """Seconds of the whole command, and of its scoring."""
    command = [
        *(sys.executable, "-c", _TIMED, str(count), _TIMED),
        *("detect", MODEL, "--corpus", "prompts.txt", "--against", "none", "--backend"),
        *("multi-gpu", "--offline", "-q", "-o", f"{output or count}/m.safetensors"),
    ]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - started
    took = re.search(r"scoring took ([0-9.]+) s", done.stderr)
    if done.returncode or took is None:
        raise RuntimeError(f"detection in {count} processes failed: {done.stderr}")
    return whole, float(took.group(1))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
