"""Memory that runs out in the middle: batches in halves, the same result, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from snt_backends.full import FullModel, load

from snt.backend import Batch
from snt.chat import Chat
from snt.errors import RunFailure
from snt.evaluation.perplexity import perplexity
from snt.evaluation.refusal_odds import refusal_log_odds, tree_of
from snt.halving import in_parts
from snt.scoring import common_beginning, detect_scores, group_by_length

_DRAW = torch.Generator().manual_seed(2)
COMMON = list(range(60, 72))
PROMPTS = [
    COMMON + torch.randint(1, 250, (n,), generator=_DRAW).tolist()
    for n in (3, 9, 5, 8, 7, 4, 6, 10, 11, 12)
]
TEXTS = ["a line of text", "another one, longer", "short", "and the last of these"]


class Small(FullModel):
    """Holds so many rows at once; more are out of memory in the second layer of an observation."""

    rows = 3

    def observe(self, batches: Any, visitor: Any, beginning: Any = None) -> None:
        def visit(layer: int, batch: Batch, seen: Any, model: Any) -> None:
            if layer == 1 and len(batch.real) > self.rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            visitor(layer, batch, seen, model)

        super().observe(batches, visit, beginning)

    def hidden(self, batch: Batch) -> Any:
        if len(batch.real) > self.rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super().hidden(batch)


def _small(pico: Path, rows: int = 3) -> Small:
    held = load(pico, torch.float32)
    made = Small(held.model, held.tokenizer, held.anatomy, held.device)
    object.__setattr__(made, "rows", rows)
    return made


def test_parts_hold_every_row_in_order() -> None:
    batch = Batch(torch.arange(14).reshape(7, 2), torch.ones(7, 2, dtype=torch.bool))
    for parts, sizes in ((1, [7]), (2, [4, 3]), (4, [2, 2, 2, 1]), (16, [1] * 7)):
        found = in_parts(batch, parts)
        assert [len(one.real) for one in found] == sizes
        assert torch.equal(torch.cat([one.input_ids for one in found]), batch.input_ids)


@pytest.mark.parametrize("shared", [False, True])
def test_a_detection_goes_on_in_halves(pico: Path, shared: bool) -> None:
    batches = group_by_length(PROMPTS, pad_id=0, size=8)
    beginning = common_beginning(batches) if shared else None
    assert shared == (beginning is not None)
    whole = detect_scores(load(pico, torch.float32), batches, beginning=beginning)
    said: list[str] = []
    tallies: list[int] = []
    halved = detect_scores(
        _small(pico),
        batches,
        beginning=beginning,
        say=said.append,
        on_batch=lambda tally: tallies.append(tally.batches),
    )
    assert len(said) == 1 and "batches are halved from here on" in said[0]
    assert tallies == [1, 2]
    for place, scores in whole.scores.places.items():
        found = halved.scores.places[place]
        torch.testing.assert_close(found.minimum, scores.minimum, rtol=1e-4, atol=1e-6)
        assert found.histogram.sum() == scores.histogram.sum()


def test_what_was_found_before_is_not_measured_again(pico: Path) -> None:
    batches = group_by_length(PROMPTS, pad_id=0, size=2) + group_by_length(PROMPTS[:8], pad_id=0)
    seen: list[int] = []
    model = _small(pico, rows=4)
    detect_scores(model, batches, on_batch=lambda tally: seen.append(tally.batches))
    assert seen == [*range(1, len(batches) + 1)]


def test_one_prompt_that_does_not_fit_is_an_error(pico: Path) -> None:
    batches = group_by_length(PROMPTS, pad_id=0)
    with pytest.raises(RunFailure, match="out of memory with one prompt at a time"):
        detect_scores(_small(pico, rows=0), batches)


def test_other_errors_are_not_taken_for_it(pico: Path) -> None:
    def fail(_prompts: int) -> None:
        raise RuntimeError("a kernel is missing")

    with pytest.raises(RuntimeError, match="a kernel is missing"):
        detect_scores(load(pico, torch.float32), group_by_length(PROMPTS, 0), on_layer=fail)


def test_an_evaluation_goes_on_in_halves(pico: Path) -> None:
    small, held = _small(pico, rows=1), load(pico, torch.float32)
    chat = Chat(held.tokenizer, held.context, None)
    said: list[str] = []
    found = perplexity(small, chat, TEXTS, say=said.append)
    assert found.nats == pytest.approx(perplexity(held, chat, TEXTS).nats, rel=1e-5)
    assert len(said) == 1
    tree = tree_of(chat, ("No", "I will"))
    odds = refusal_log_odds(small, chat, TEXTS, tree, say=said.append)
    assert odds == pytest.approx(refusal_log_odds(held, chat, TEXTS, tree), rel=1e-4)
    assert len(said) == 2
    with pytest.raises(RunFailure, match="one prompt at a time"):
        perplexity(_small(pico, rows=0), chat, TEXTS)
