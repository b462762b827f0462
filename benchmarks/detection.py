"""Exact detection against a plain batched forward over the same prompts, in one run.

    python benchmarks/detection.py [PROMPTS] [ROUNDS]

Both run in float32 in batches of the same prompts; the plain forward uses the model's own (fused)
attention and ends at the final hidden states. Prints minimum, median and maximum of the ratio.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

from snt import corpora
from snt.opening import ModelChoice, open_model
from snt.scoring import detect_scores, group_by_length


def main() -> None:
    """Time both in turn, so that a slow minute of the machine hits both."""
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    opened = open_model(ModelChoice("smollm2-135m"), exact=True)
    texts = corpora.load("harmful/detect").texts[:prompts]
    ids = [opened.chat.prompt_ids(text) for text in texts]
    batches = group_by_length(ids, opened.chat.pad_id)
    forward, detection = [], []
    with torch.inference_mode():
        opened.model.hidden(batches[0])
    for _ in range(rounds):
        started = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                opened.model.hidden(batch)
        forward.append(time.perf_counter() - started)
        started = time.perf_counter()
        detect_scores(opened.model, batches)
        detection.append(time.perf_counter() - started)
    ratios = sorted(d / f for d, f in zip(detection, forward, strict=True))
    report = {
        "prompts": len(ids),
        "tokens": sum(map(len, ids)),
        "forward_seconds": forward,
        "detect_seconds": detection,
        "ratio": {"min": ratios[0], "median": statistics.median(ratios), "max": ratios[-1]},
        "bar": 8.0,
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
