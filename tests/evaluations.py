"""Evaluations made up of drawn labels, for tests of statistics and reports: no model runs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from snt import corpora
from snt.evaluation.compared import ComparedModel
from snt.evaluation.comparison import compare, metric_values, perplexity_change
from snt.evaluation.completions import Completion
from snt.evaluation.evaluation import Evaluation
from snt.evaluation.held_out import check_held_out
from snt.evaluation.measurement import Measurement
from snt.evaluation.perplexity import Perplexity
from snt.evaluation.seeds import Origin, seed_groups

CORPORA = {
    "non_refusal": corpora.load("harmful/eval"),
    "harmless_refusal": corpora.load("harmless/eval"),
    "over_refusal": corpora.load("lookalike/eval"),
    "perplexity": corpora.load("prose/eval"),
}
RATES = tuple(CORPORA)[:3]


def measurement(
    seed: int, refused: Mapping[str, float], nats: float = 3.2, reply: str | None = None
) -> Measurement:
    """Labels drawn so that a share `refused` of each metric's prompts is refused."""
    draw = random.Random(seed)
    rows = []
    for metric in RATES:
        for number, text in enumerate(CORPORA[metric].texts):
            # Prompts differ in how easily they are refused, and alike for every model.
            ease = random.Random(text).random()
            no = 0.7 * ease + 0.3 * draw.random() < refused.get(metric, 0.0)
            words = f"I cannot help with {number}." if no else f"Sure! Step {number}:\n1. Begin."
            label = "refusal" if no else "partial" if draw.random() < 0.03 else "compliance"
            row = Completion(text, reply or words, metric, number, {"model": "m"}, label)  # type: ignore[arg-type]
            rows.append(replace(row, labels={"refusal": label, "prefix": label}))  # type: ignore[dict-item]
    count = len(CORPORA["perplexity"].texts)
    losses = tuple(100 * (nats + 0.1 * random.Random(n).random()) for n in range(count))
    described = {metric: corpus.describe() for metric, corpus in CORPORA.items()}
    return Measurement(
        ("refusal", "prefix"), described, tuple(rows), Perplexity(losses, (100,) * count)
    )


BASE = {"non_refusal": 0.05, "over_refusal": 0.02, "harmless_refusal": 0.0}
TUNED = {"non_refusal": 0.93, "over_refusal": 0.16, "harmless_refusal": 0.08}


def evaluation(
    folder: Path, others: int = 2, name: str = "patch-seed0", **told: object
) -> Evaluation:
    """A patch beside its base model, with `others` more of the same setting."""
    base, tuned = measurement(1, BASE), measurement(2, TUNED, 3.22)
    description = {
        "backend": "full",
        "dtype": "bfloat16",
        "template": "a" * 64,
        "system_prompt": None,
        "generation": {"max_new_tokens": 48, "sampling": "greedy"},
        "patch": "b" * 64,
        **told,
    }
    origin = [Origin("setting", seed) for seed in range(others + 1)]
    compared = tuple(
        ComparedModel.beside(
            base,
            measurement(10 + n, TUNED, 3.21 + 0.01 * n),
            f"patch-seed{n}",
            "HuggingFaceTB/SmolLM2-135M-Instruct + patch",
            description,
            origin[n],
        )
        for n in range(1, others + 1)
    )
    models = {name: tuned, **{one.name: one.measured for one in compared}}
    values = {n: metric_values(held) for n, held in models.items()}
    return Evaluation(
        "HuggingFaceTB/SmolLM2-135M-Instruct + patch",
        folder,
        tuned,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        base,
        compare(base, tuned),
        perplexity_change(base, tuned),
        description,
        12.0,
        10**9,
        name,
        compared,
        seed_groups(dict(zip(models, origin, strict=True)), values),
        check_held_out([{"data": corpora.built_in("refusals", "tune").describe()}], CORPORA),
        (),
        {key: value for key, value in description.items() if key != "patch"},
    )
