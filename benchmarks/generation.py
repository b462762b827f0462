"""Replies of the embedded model: this project's way against transformers' `generate` as it comes.

The other side is what a user would write: float32, the prompts in the order in which they arrive,
16 at a time, padded to the longest, every row run on until the last one has ended.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.ratios import Row, ratios
from snt import corpora
from snt.generation import replies
from snt.model_refs import resolve
from snt.opening import ModelChoice, dtype_name, open_model

MODEL = "smollm2-135m"
CORPORA = ("harmful/eval", "harmless/eval", "lookalike/eval")
PROMPTS, NEW_TOKENS, BATCH = 225, 64, 16


def arriving(count: int = PROMPTS) -> list[str]:
    """Prompts of three kinds and many lengths, mixed as they might arrive."""
    texts = [text for name in CORPORA for text in corpora.load(name).texts]
    return random.Random(0).sample(texts, count)


def rows(rounds: int) -> list[Row]:
    """Seconds for the same prompts and the same longest reply, the sides in turn."""
    opened = open_model(ModelChoice(MODEL))
    plain = _plain()
    sides: dict[str, Callable[[list[str]], list[str]]] = {
        "transformers": plain,
        "snt": lambda texts: replies(opened.model, opened.chat, texts, NEW_TOKENS),
    }
    texts = arriving()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    said: dict[str, list[str]] = {}
    for side in sides.values():
        side(texts[:BATCH])  # so that nothing is timed cold
    for number in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            said[name] = side(texts)
            seconds[name].append(time.perf_counter() - started)
            sys.stderr.write(f"    round {number + 1}: {name} {seconds[name][-1]:.1f} s\n")
    tokens = {
        name: sum(len(opened.chat.response_ids(text)) for text in some)
        for name, some in said.items()
    }
    speed = {name: tokens[name] / min(seconds[name]) for name in sides}
    alike = sum(one == other for one, other in zip(*said.values(), strict=True))
    held = dtype_name(opened.model.dtype)
    return [
        Row(
            "replies: seconds of transformers' generate / of snt",
            ratios(seconds["transformers"], seconds["snt"]),
            2.0,
            False,
            f"{MODEL}, {PROMPTS} prompts, {NEW_TOKENS} new tokens; float32 in batches of {BATCH} "
            f"{speed['transformers']:.0f} tokens/s, {held} {speed['snt']:.0f}; {tokens['snt']} and "
            f"{tokens['transformers']} tokens, {alike} replies alike to the letter",
        )
    ]


def _plain() -> Callable[[list[str]], list[str]]:
    directory = resolve(MODEL).directory
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def side(texts: list[str]) -> list[str]:
        said = []
        for start in range(0, len(texts), BATCH):
            messages = [
                [{"role": "user", "content": text}] for text in texts[start : start + BATCH]
            ]
            batch = tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                return_tensors="pt",
                padding=True,
                return_dict=True,
            )
            new = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
            new = new[:, batch["input_ids"].shape[1] :]
            said += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
        return said

    return side
