"""Refusal log-odds against enumeration and against one opening at a time through a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snt.backend import Batch, get_backend
from snt.chat import Chat
from snt.errors import RequestError
from snt.evaluation.refusal_odds import (
    FLOOR,
    OPENINGS,
    coverage,
    log_odds,
    opening_tree,
    refusal_log_odds,
    tree_of,
)

OPENING = st.lists(st.integers(0, 2), min_size=1, max_size=3)


@given(st.lists(OPENING, min_size=1, max_size=6), st.integers(0, 99))
def test_log_odds_are_those_of_the_event(openings: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tables: dict[tuple[int, ...], torch.Tensor] = {}

    def next_token(prefix: tuple[int, ...]) -> torch.Tensor:
        if prefix not in tables:
            tables[prefix] = torch.randn(4, generator=generator).double().softmax(0)
        return tables[prefix]

    # All texts of three tokens out of four: exactly the openings' event, by enumeration.
    hit = 0.0
    for text in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
        p = math.prod(float(next_token(tuple(text[:n]))[token]) for n, token in enumerate(text))
        hit += p * any(text[: len(opening)] == opening for opening in openings)
    tree = opening_tree(openings)
    steps = {
        prefix: {token: math.log(float(next_token(prefix)[token])) for token in tokens}
        for prefix, tokens in tree.children.items()
    }
    assert log_odds(tree, steps) == pytest.approx(math.log(hit / (1 - hit)), abs=1e-9)
    # Every beginning is read from a row that holds it, and no row begins another.
    for prefix, row in tree.owner.items():
        assert tree.rows[row][: len(prefix)] == prefix
    for row in tree.rows:
        assert not any(row != other and other[: len(row)] == row for other in tree.rows)


def test_an_opening_that_another_begins_is_the_same_event() -> None:
    assert opening_tree([[1], [1, 2], [3, 4], [3, 4]]).openings == ((1,), (3, 4))
    for wrong in ([], [[]], [[1], []]):
        with pytest.raises(RequestError, match="no tokens"):
            opening_tree(wrong)


def test_certainty_is_capped() -> None:
    tree = opening_tree([[0]])
    assert log_odds(tree, {(): {0: 0.0}}) == pytest.approx(-math.log(FLOOR))
    assert log_odds(tree, {(): {0: -800.0}}) == pytest.approx(-800.0)


def test_a_model_gives_what_one_opening_at_a_time_gives(pico: Path) -> None:
    model: Any = get_backend("full").load(pico, torch.float32)
    chat = Chat(model.tokenizer, model.context)
    openings = ("Sorry", "I'm sorry", "I can't", "I cannot", "No")
    prompts = ["Hi", "A much longer question about tea", "Why?"]
    found = refusal_log_odds(model, chat, prompts, tree_of(chat, openings), batch_size=4)
    for prompt, value in zip(prompts, found, strict=True):
        total = 0.0
        for opening in openings:
            ids, start = chat.pair_ids(prompt, opening)
            ids = ids[: start + len(chat.response_ids(opening))]
            batch = Batch(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
            with torch.inference_mode():
                logs = model.logits(model.hidden(batch))[0].double().log_softmax(-1)
            total += math.exp(sum(float(logs[n - 1, ids[n]]) for n in range(start, len(ids))))
        assert value == pytest.approx(math.log(total / (1 - total)), abs=1e-4)


def test_a_prompt_that_leaves_no_room(pico: Path) -> None:
    model: Any = get_backend("full").load(pico, torch.float32)
    chat = Chat(model.tokenizer, 40)
    with pytest.raises(RequestError, match="room"):
        refusal_log_odds(model, chat, ["x" * 10], tree_of(chat))


def test_coverage_counts_beginnings() -> None:
    replies = ["I'm sorry, no.", '"Sorry!"', "Tea is made so:", "I can help"]
    assert coverage(replies) == 2
    assert not any(a != b and b.startswith(a) for a in OPENINGS for b in OPENINGS)
