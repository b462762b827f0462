"""What a detection of a published model would take here: its layers, streamed from disk, but few.

    python -m benchmarks.scale 70b [--layers 2] [--prompts 16] [--tokens 44]

Memory does not depend on the number of layers, and time is in proportion to it; docs/scale.md
has what follows. Takes disk for the layers and the embedding (70b: 7.6 GB with two layers).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.random_llama import PUBLISHED, detect_apart, write_llama
from benchmarks.streaming import idle_bytes


def main() -> None:
    """Write, detect, delete; one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("model", choices=sorted(PUBLISHED))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=44)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp(prefix="snt-scale-"))
    try:
        written = write_llama(folder, options.layers, PUBLISHED[options.model])
        peak, seconds = detect_apart(folder, options.prompts, options.tokens)
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(
        f"{options.model}, {options.layers} layers, {written / 1e9:.1f} GB of bfloat16: "
        f"{options.prompts} prompts of {options.tokens} tokens in {seconds:.0f} s, "
        f"{(peak - idle_bytes()) / 1e9:.2f} GB above an idle import of torch\n"
    )


if __name__ == "__main__":
    main()
