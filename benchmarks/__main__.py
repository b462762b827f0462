"""Every ratio of detection, generation and tuning against its bar, in one run.

    python -m benchmarks [--prompts 64] [--rounds 3] [--threads N] [--only embedded,generation,…]

The two sides of a ratio are timed in turn, so that a slow minute of the machine hits both. A table
goes to stderr, one JSON document to stdout; the exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from benchmarks import embedded, generation, layers, processes, streaming, tuning
from benchmarks.ratios import Row

PARTS = {
    "embedded": lambda prompts, rounds: embedded.rows(prompts, rounds),
    "large": lambda _prompts, rounds: layers.large(rounds),
    "published": lambda _prompts, rounds: layers.against_published(rounds),
    "long": lambda _prompts, _rounds: layers.long(),
    "streaming": lambda prompts, rounds: streaming.rows(prompts, rounds),
    "generation": lambda _prompts, rounds: generation.rows(rounds),
    "processes": lambda prompts, rounds: processes.rows(prompts, rounds),
    "tuning": lambda _prompts, rounds: tuning.rows(rounds),
}


def processor() -> str:
    """The processor's own name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios and bars.")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    parts = options.only.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    machine = f"{processor()}, {options.threads} threads, torch {torch.__version__}, float32"
    sys.stderr.write(f"{machine}\n{'':<64}{'min':>9}{'median':>9}{'max':>9}   bar\n")
    found: list[Row] = []
    for part in parts:
        for row in PARTS[part](options.prompts, options.rounds):
            found.append(row)
            sys.stderr.write(f"{row.line()}\n    {row.note}\n")
    report = {
        "machine": machine,
        "rounds": options.rounds,
        "rows": [row.as_json() for row in found],
    }
    sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(row.met for row in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
