"""Replies of the own loop are those of transformers' generate, whatever the batch looks like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_models import FAMILIES, family_model
from snt_backends.decoding import continuations, drawn
from snt_backends.shared_prefix import common_beginning
from transformers import AutoModelForCausalLM, GenerationConfig, MptConfig

from snt.backend import Batch, Sampling

_BEGINNING = list(range(30, 45))


def _left(rows: list[list[int]]) -> Batch:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), 7)
    real = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        real[number, longest - len(row) :] = True
    return Batch(ids, real)


def _rows(beginning: list[int], count: int = 12) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [
        beginning + torch.randint(1, 250, (1 + 5 * n % 17,), generator=draw).tolist()
        for n in range(count)
    ]


def _of_transformers(
    model: Any, batch: Batch, new_tokens: int, stops: list[int]
) -> list[list[int]]:
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
    )
    with torch.inference_mode():
        whole = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.real.long(),
            generation_config=settings,
        )
    return _ended(whole[:, batch.input_ids.shape[1] :], stops)


def _ended(new: torch.Tensor, stops: list[int]) -> list[list[int]]:
    rows = []
    for row in new.tolist():
        end = next((n for n, token in enumerate(row) if token in stops), len(row))
        rows.append(row[:end])
    return rows


def _own(model: Any, batch: Batch, new_tokens: int, stops: list[int]) -> list[list[int]]:
    with torch.inference_mode():
        return _ended(continuations(model, batch, new_tokens, stops), stops)


@pytest.mark.parametrize("beginning", [[], _BEGINNING], ids=["apart", "shared"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_greedy_tokens_are_those_of_generate(model_type: str, beginning: list[int]) -> None:
    model = family_model(model_type)
    batch = _left(_rows(beginning))
    free = _of_transformers(model, batch, 20, [257])
    # Tokens that the replies use end them at many lengths, so that rows leave all along.
    common = torch.tensor([token for row in free for token in row]).mode().values
    stops = [int(common), free[0][9], 257]
    expected = _of_transformers(model, batch, 20, stops)
    assert len({len(row) for row in expected}) > 1
    assert _own(model, batch, 20, stops) == expected
    assert _own(model, batch, 20, [257]) == free


def test_a_window_wider_than_the_rows_shares_the_beginning() -> None:
    model = family_model("gemma3_text", sliding_window=64)
    batch = _left(_rows(_BEGINNING))
    assert common_beginning(batch) == len(_BEGINNING)
    assert _own(model, batch, 12, [257]) == _of_transformers(model, batch, 12, [257])


def test_positions_by_column_share_no_beginning() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MptConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=4, max_seq_len=256)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    batch = _left(_rows(_BEGINNING))
    assert _own(model, batch, 12, [257]) == _of_transformers(model, batch, 12, [257])


@pytest.mark.parametrize("original", [20, 26, 200])
def test_a_rotary_embedding_that_changes_with_the_length(original: int) -> None:
    factors = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 7.0]}
    rope = {
        **{"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        **{"original_max_position_embeddings": original, **factors},
    }
    model = family_model("phi3", rope_parameters=rope, original_max_position_embeddings=original)
    # Rows of one length: transformers counts padding towards the length at which it changes.
    rows = [row[:18] for row in _rows(_BEGINNING + list(range(3)))]
    batch = _left(rows)
    assert _own(model, batch, 14, [257]) == _of_transformers(model, batch, 14, [257])


def test_one_row_one_token_and_no_stop() -> None:
    model = family_model("llama")
    batch = _left([[5]])
    assert _own(model, batch, 1, [257]) == _of_transformers(model, batch, 1, [257])
    with torch.inference_mode():
        assert continuations(model, batch, 6, []).shape == (1, 6)


def test_rows_end_and_nothing_is_run_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("llama")
    batch = _left(_rows([]))
    free = _own(model, batch, 20, [257])
    stops = [free[0][3], free[1][5], 257]
    widths: list[int] = []
    inner = model.forward

    def counted(**words: Any) -> Any:
        widths.append(len(words["input_ids"]))
        return inner(**words)

    monkeypatch.setattr(model, "forward", counted)
    replies = _own(model, batch, 20, stops)
    assert widths[0] == len(replies) and widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0]


def test_the_common_beginning_of_rows_padded_on_the_left() -> None:
    assert common_beginning(_left(_rows(_BEGINNING))) == len(_BEGINNING)
    assert common_beginning(_left([_BEGINNING, [*_BEGINNING, 1]])) == len(_BEGINNING) - 1
    assert common_beginning(_left([_BEGINNING[:5] + [1], _BEGINNING[:5] + [2]])) == 0
    assert common_beginning(_left([_BEGINNING])) == 0


def test_draws_follow_the_distribution_and_the_nucleus() -> None:
    logits = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()
    draws = 4000
    uniform = torch.rand(draws, 1, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(draws)
    many = logits.expand(draws, -1)
    found = drawn(many, Sampling(1.0, 1.0, uniform), 0, rows).bincount(minlength=4) / draws
    torch.testing.assert_close(found, logits.exp(), atol=0.03, rtol=0)
    found = drawn(many, Sampling(1.0, 0.7, uniform), 0, rows).bincount(minlength=4) / draws
    torch.testing.assert_close(found, torch.tensor([0, 0.5, 0, 0.35]) / 0.85, atol=0.03, rtol=0)
    # The likeliest token is always in the nucleus; so cold a distribution has no other.
    for sampling in (Sampling(1.0, 1e-6, uniform), Sampling(1e-3, 1.0, uniform)):
        assert set(drawn(many, sampling, 0, rows).tolist()) == {1}


def test_draws_do_not_depend_on_what_stands_beside() -> None:
    model = family_model("qwen3")
    rows = _rows(_BEGINNING, 6)
    uniform = torch.rand(6, 10, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        together = _ended(
            continuations(model, _left(rows), 10, [257], Sampling(2.0, 0.9, uniform)), [257]
        )
        for number, row in enumerate(rows):
            alone = Sampling(2.0, 0.9, uniform[number : number + 1])
            assert _ended(continuations(model, _left([row]), 10, [257], alone), [257]) == [
                together[number]
            ]
