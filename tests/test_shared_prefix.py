"""A common beginning computed once: the same hidden states and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, family_model
from snt_backends.full import load
from snt_backends.shared_prefix import hidden_states, shared_length

from snt.anatomy import anatomy_of
from snt.backend import Batch

_COMMON = list(range(40, 52))


def _batch(rows: list[list[int]], left: bool = False) -> Batch:
    longest = max(map(len, rows))
    ids, real = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest)
    for number, row in enumerate(rows):
        at = slice(longest - len(row), None) if left else slice(len(row))
        ids[number, at] = torch.tensor(row)
        real[number, at] = 1
    return Batch(ids, real.bool())


def _plain(model: object, batch: Batch) -> torch.Tensor:
    decoder = model.model.model  # type: ignore[attr-defined]
    output = decoder(input_ids=batch.input_ids, attention_mask=batch.real.long(), use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([_COMMON + [1, 2], _COMMON + [3]], 12),
        ([_COMMON, _COMMON + [3]], 11),  # the first row keeps one token of its own
        ([_COMMON[:5] + [1], _COMMON[:5] + [2]], 0),
        ([_COMMON + [1]], 0),
        ([[9, *_COMMON], [8, *_COMMON]], 0),
    ],
)
def test_length_of_the_common_beginning(rows: list[list[int]], expected: int) -> None:
    assert shared_length(_batch(rows)) == expected


def test_left_padding_has_no_common_beginning() -> None:
    assert shared_length(_batch([_COMMON + [1, 2], _COMMON + [3]], left=True)) == 0


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_computes_the_same(model_type: str) -> None:
    model = family_model(model_type, 0.3).eval()
    decoder = model.get_submodule(anatomy_of(model.config).family.decoder)
    batch = _batch([_COMMON + [1, 2, 3, 4], _COMMON + [5], _COMMON + [6, 7]])
    with torch.inference_mode():
        found = hidden_states(decoder, batch)
        plain = decoder(
            input_ids=batch.input_ids, attention_mask=batch.real.long(), use_cache=False
        ).last_hidden_state
    torch.testing.assert_close(found[batch.real], plain[batch.real], rtol=1e-4, atol=1e-4)


def test_hidden_states_and_gradients_are_those_of_whole_rows(pico: Path) -> None:
    model = load(pico, torch.float32)
    weight = model.module(0, "self_attn.k_proj").weight
    weight.requires_grad_(True)
    batch = _batch([_COMMON + [1, 2, 3], _COMMON + [4], _COMMON + [5, 6]])
    assert shared_length(batch) == len(_COMMON)
    found = []
    for hidden in (model.hidden(batch), _plain(model, batch)):
        (hidden[batch.real].square().mean()).backward()
        found.append((hidden[batch.real].detach(), weight.grad.clone()))
        weight.grad = None
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
