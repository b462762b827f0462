"""The embedded model on chat prompts of natural length: exact and fast against a plain forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks.peak import peak_of
from benchmarks.ratios import Row, in_turn, ratios
from snt import corpora
from snt.backend import Batch, LoadedModel
from snt.opening import ModelChoice, open_model
from snt.scores import Scores
from snt.scoring import BATCH_PROMPTS, common_beginning, detect_scores, group_by_length

MODEL, CORPUS = "smollm2-135m", "harmful/detect"


def model_and_batches(prompts: int) -> tuple[LoadedModel, list[Batch]]:
    """The float32 model and an even sample of the corpus in batches of similar length."""
    opened = open_model(ModelChoice(MODEL), exact=True)
    texts = corpora.load(CORPUS).texts
    sample = texts[:: max(1, len(texts) // prompts)][:prompts]
    ids = [opened.chat.prompt_ids(text) for text in sample]
    return opened.model, group_by_length(ids, opened.chat.pad_id)


def forward(model: Any, batches: Sequence[Batch]) -> None:
    """Every row whole, by the model's own attention, to the final hidden states."""
    with torch.inference_mode():
        for batch in batches:
            model.forward(batch)


def rows(prompts: int, rounds: int) -> list[Row]:
    """Exact and fast in total, their agreement, and growth with the number of prompts."""
    model, batches = model_and_batches(prompts)
    found: dict[str, Scores] = {}

    def detection(name: str) -> Callable[[], None]:
        def run() -> None:
            beginning = common_beginning(batches, name)
            found[name] = detect_scores(model, batches, importance=name, beginning=beginning).scores

        return run

    half = batches[::2]
    seconds = in_turn(
        {
            "forward": lambda: forward(model, batches),
            "exact": detection("exact"),
            "fast": detection("fast"),
            "half": lambda: detect_scores(model, half, beginning=common_beginning(half)),
        },
        rounds,
    )
    tokens = [sum(int(batch.real.sum()) for batch in some) for some in (batches, half)]
    note = f"{MODEL}, {CORPUS}: {prompts} prompts, {tokens[0]} tokens"
    doubled = [one * tokens[0] / tokens[1] for one in seconds["half"]]
    memory = [peak_of(_prepared, count) for count in (4, 16)]
    return [
        Row(
            "exact, embedded model, total / forward",
            ratios(seconds["exact"], seconds["forward"]),
            4.0,
            True,
            note,
        ),
        Row(
            "fast, embedded model, total / forward",
            ratios(seconds["fast"], seconds["forward"]),
            1.5,
            True,
            note,
        ),
        *agreement(found["exact"], found["fast"]),
        Row(
            "growth: seconds a token, all prompts / half of them",
            ratios(seconds["exact"], doubled),
            1.15,
            True,
            "exact",
        ),
        Row(
            "growth: memory above the model, 128 prompts / 32 prompts",
            (memory[1] / memory[0],),
            1.1,
            True,
            f"{memory[0] >> 20} and {memory[1] >> 20} MiB, forward included; prompts of one length",
        ),
    ]


def agreement(exact: Scores, fast: Scores) -> list[Row]:
    """Order by the mean log-rank over prompts, which is what contrast uses."""
    correlations, shared, wanted = {}, 0, 0
    for (layer, kind), scores in exact.places.items():
        if kind not in ("q", "k"):
            continue
        mine = fast.places[layer, kind].mean_log_rank()[0]
        theirs = scores.mean_log_rank()[0]
        correlations[f"layer {layer} {kind}"] = float(spearmanr(mine, theirs).statistic)
        count = ceil(0.01 * len(theirs))
        top = [set(ranks.argsort(stable=True)[:count].tolist()) for ranks in (mine, theirs)]
        shared, wanted = shared + len(top[0] & top[1]), wanted + count
    worst = min(correlations, key=lambda place: correlations[place])
    return [
        Row(
            "fast: rank correlation with exact, every (layer, q or k)",
            tuple(correlations.values()),
            0.98,
            False,
            f"mean log-rank; the worst is {worst}, {correlations[worst]:.4f}",
            every=True,
        ),
        Row(
            "fast: overlap with exact in the top 1% of q and k",
            (shared / wanted,),
            0.9,
            False,
            f"mean log-rank; {wanted} neurons, 1% of each (layer, kind)",
        ),
    ]


def _prepared(batches: int) -> Callable[[], object]:
    model, planned = model_and_batches(BATCH_PROMPTS)
    beginning = common_beginning(planned)
    detect_scores(model, planned, beginning=beginning)
    # The same lengths throughout: every new length leaves the allocator with other gaps.
    return lambda: detect_scores(model, planned * batches, beginning=beginning)
