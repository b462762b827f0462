"""Scoring through the `full` backend: planted neurons found, padding and batching immaterial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from snt.backend import Batch, backend_names, get_backend
from snt.errors import RequestError, UnknownNameError
from snt.importance.positions import Positions
from snt.scoring import common_beginning, detect_scores, group_by_length


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with one loud neuron of each kind in layer 1."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    layer: Any = model.model.layers[1]
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.3)
        layer.mlp.down_proj.weight[:, 7] *= 1000
        # Query, key and value in one group: queries of a group with quiet values change little.
        layer.self_attn.q_proj.weight[5] *= 8
        layer.self_attn.k_proj.weight[1] *= 8
        layer.self_attn.v_proj.weight[2] *= 1000
    folder = tmp_path_factory.mktemp("pico") / "pico-llama"
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({str(i): i for i in range(32)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


# A generator of its own: the planted neurons must not depend on what other tests have drawn.
_DRAW = torch.Generator().manual_seed(1)
PROMPTS = [torch.randint(1, 32, (n,), generator=_DRAW).tolist() for n in (3, 9, 5, 1, 7, 4)]


def test_the_backend_comes_through_the_entry_point() -> None:
    assert "full" in backend_names()
    with pytest.raises(UnknownNameError, match="full"):
        get_backend("ful")


def test_planted_neurons_are_the_most_important(directory: Path) -> None:
    model = get_backend("full").load(directory)
    scores = detect_scores(model, group_by_length(PROMPTS[:3], pad_id=0)).scores
    assert scores.places[1, "ffn"].worst_rank[7] == 0
    assert scores.places[1, "v"].worst_rank[2] == 0
    assert int(scores.places[1, "q"].mean_log_rank()[0].argmin()) == 5
    assert int(scores.places[1, "k"].mean_log_rank()[0].argmin()) == 1
    assert scores.places[0, "q"].prompts == 3


def test_batching_and_padding_do_not_matter(directory: Path) -> None:
    model = get_backend("full").load(directory)
    together = detect_scores(model, group_by_length(PROMPTS, pad_id=0, size=4)).scores
    alone = detect_scores(model, group_by_length(PROMPTS, pad_id=0, size=1)).scores
    left = [
        Batch(b.input_ids.flip(1), b.real.flip(1))
        for b in group_by_length([p[::-1] for p in PROMPTS], pad_id=0, size=3)
    ]
    padded_left = detect_scores(model, left).scores
    for place, scores in alone.places.items():
        for other in (together, padded_left):
            torch.testing.assert_close(
                scores.minimum, other.places[place].minimum, rtol=1e-4, atol=1e-6
            )


def test_the_model_is_left_as_it_was(directory: Path) -> None:
    model: Any = get_backend("full").load(directory)
    batch = group_by_length(PROMPTS, pad_id=0)[0]
    implementation = model.model.config._attn_implementation
    before = model.hidden(batch)
    detect_scores(model, [batch])
    assert model.model.config._attn_implementation == implementation
    assert torch.equal(model.hidden(batch), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


def test_empty_requests() -> None:
    with pytest.raises(RequestError, match="no prompts"):
        group_by_length([], pad_id=0)
    with pytest.raises(RequestError, match="prompt 2"):
        group_by_length([[1], []], pad_id=0)


def test_what_prompts_begin_with_is_measured_once_and_counts_for_all(directory: Path) -> None:
    model = get_backend("full").load(directory)
    template = [7, 3, 9, 1, 4, 4, 8, 2, 5, 6]
    batches = group_by_length([[*template, *one] for one in PROMPTS], pad_id=0, size=2)
    beginning = common_beginning(batches)
    assert beginning is not None and beginning.tolist() == template
    for importance in ("exact", "paper"):
        once = detect_scores(model, batches, importance=importance, beginning=beginning).scores
        each = detect_scores(model, batches, importance=importance).scores
        for place, scores in each.places.items():
            torch.testing.assert_close(
                once.places[place].minimum, scores.minimum, rtol=1e-4, atol=1e-6
            )
            assert once.places[place].prompts == len(PROMPTS)


def test_what_is_no_common_beginning() -> None:
    def found(*prompts: list[int], **more: Any) -> int:
        beginning = common_beginning(group_by_length(list(prompts), pad_id=0, size=2), **more)
        return 0 if beginning is None else len(beginning)

    alike, longer = list(range(1, 13)), list(range(1, 15))
    assert found(alike, longer) == 11  # every prompt keeps a token of its own
    assert found(alike, longer, positions=Positions(3)) == 9
    assert found(alike, longer, positions=Positions(5)) == 0  # seven tokens are not worth it
    assert found(alike, longer, importance="released-code") == 0
    assert found(alike) == 0
    assert found(alike, longer, [1, 2, 3, 4, 5, 6, 7, 8, 99, 10, 11]) == 8
    assert found(alike, longer, [1, 2, 3, 99, 5, 6, 7, 8, 9, 10, 11]) == 0
    left = Batch(torch.ones(2, 12, dtype=torch.long), torch.ones(2, 12, dtype=torch.bool))
    left.real[1, 0] = False
    assert common_beginning([left]) is None
