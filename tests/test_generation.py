"""Replies in bulk: their order, their batches, memory that runs out, draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snt import batch_sizes
from snt.backend import Batch
from snt.batch_sizes import automatic_size, free_bytes, is_out_of_memory
from snt.errors import RequestError, RunFailure
from snt.generation import Drawing, left_padded_batches, replies
from snt.opening import ModelChoice, OpenModel, open_model

PROMPTS = [f"Say {'x' * (7 * n % 23)} {n}" for n in range(11)]


class Spy:
    """A model that notes its batches, and has no memory for more than `most` rows at once."""

    def __init__(self, model: Any, most: int = 1000, error: Exception | None = None) -> None:
        self._model, self._most, self.batches = model, most, list[int]()
        self._error = error or torch.OutOfMemoryError("no memory")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, batch: Batch, *words: Any) -> Any:
        self.batches.append(len(batch.real))
        if len(batch.real) > self._most:
            raise self._error
        return self._model.generate(batch, *words)


@pytest.fixture(scope="module")
def opened(pico: Path) -> OpenModel:
    return open_model(ModelChoice(str(pico), dtype="float32", offline=True))


@pytest.fixture(scope="module")
def expected(opened: OpenModel) -> list[str]:
    """Every prompt on its own."""
    return [replies(opened.model, opened.chat, [prompt], 8)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("size", [None, 1, 4, 11, 50])
def test_replies_do_not_depend_on_the_batch(
    opened: OpenModel, expected: list[str], size: int | None
) -> None:
    counted: list[int] = []
    assert replies(opened.model, opened.chat, PROMPTS, 8, size, counted.append) == expected
    assert sum(counted) == len(PROMPTS)
    assert len(set(expected)) > 1


def test_batches_are_of_like_lengths_and_the_longest_is_first() -> None:
    batches = list(left_padded_batches([[1] * n for n in (3, 9, 1, 7)], 0, 2))
    assert [numbers for numbers, _ in batches] == [[1, 3], [0, 2]]
    assert batches[0][1].real.sum(dim=1).tolist() == [9, 7]
    assert not batches[0][1].real[1, 0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_runs_out_halves_the_batch_and_is_said(
    opened: OpenModel, expected: list[str], error: Exception
) -> None:
    said: list[str] = []
    model: Any = Spy(opened.model, 3, error)
    assert replies(model, opened.chat, PROMPTS, 8, say=said.append) == expected
    assert model.batches == [11, 5, 2, 2, 2, 2, 2, 1]
    assert len(said) == 2 and "5" in said[0] and "2" in said[1]


def test_not_even_one_prompt_fits(opened: OpenModel) -> None:
    with pytest.raises(RunFailure, match="--new-tokens"):
        replies(Spy(opened.model, 0), opened.chat, PROMPTS[:3], 8)  # type: ignore[arg-type]


def test_other_errors_are_not_swallowed(opened: OpenModel) -> None:
    model: Any = Spy(opened.model, 3, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        replies(model, opened.chat, PROMPTS, 8)
    assert model.batches == [11] and not is_out_of_memory(RuntimeError("shape mismatch"))


def test_the_batch_is_what_the_memory_holds(
    opened: OpenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    anatomy = opened.model.anatomy
    kept = 2 * anatomy.layers * anatomy.kv_heads * anatomy.head_dim
    row = (kept + 3 * anatomy.d_ff + 4 * anatomy.d_model + anatomy.heads * 100) * 4 * 100
    for free, size in ((10 * row, 5), (0, 1), (10**15, batch_sizes.MOST_CPU)):
        monkeypatch.setattr(batch_sizes, "free_bytes", lambda _device, free=free: free)
        assert automatic_size(opened.model, 100) == size


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert batch_sizes._left_in_container(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert batch_sizes._left_in_container(tmp_path) == [700]
    (tmp_path / "memory.max").write_text("max\n")
    assert batch_sizes._left_in_container(tmp_path) == []
    assert free_bytes(torch.device("cpu")) > 0


def test_draws_repeat_by_seed_and_prompt(opened: OpenModel) -> None:
    def drawn(prompts: list[str], seed: int = 0, size: int = 4) -> list[str]:
        drawing = Drawing(temperature=1.5, top_p=0.95, seed=seed)
        return replies(opened.model, opened.chat, prompts, 8, size, drawing=drawing)

    first = drawn(PROMPTS)
    assert first == drawn(PROMPTS, size=11) and first[3:5] == drawn(PROMPTS[3:5])
    assert first != drawn(PROMPTS, seed=1)
    assert first != replies(opened.model, opened.chat, PROMPTS, 8)


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        (Drawing(temperature=0.0), "greedy"),
        (Drawing(temperature=float("nan")), "temperature nan"),
        (Drawing(top_p=0.0), "top-p 0.0"),
        (Drawing(top_p=1.1), "top-p 1.1"),
        (Drawing(seed=-1), "seed -1"),
    ],
)
def test_draws_that_draw_nothing(opened: OpenModel, drawing: Drawing, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        replies(opened.model, opened.chat, PROMPTS, 8, drawing=drawing)


def test_no_prompts_and_no_batch(opened: OpenModel) -> None:
    assert replies(opened.model, opened.chat, []) == []
    with pytest.raises(RequestError, match="--batch-size"):
        replies(opened.model, opened.chat, PROMPTS, 8, 0)
