"""Where neurons lie: places in fused weights, sizes and parameters, refusals, hostile metadata."""

from __future__ import annotations

from typing import Any

import pytest
from family_models import FAMILIES, family_config, family_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3Config, GPT2Config, Qwen2MoeConfig

from snt.anatomy import KINDS, Anatomy, anatomy_from, anatomy_of
from snt.errors import FormatError, RequestError
from snt.families import FAMILIES as ENTRIES


def test_every_entry_has_a_tiny_model() -> None:
    assert set(FAMILIES) == set(ENTRIES)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_slices_cover_every_weight_once(model_type: str) -> None:
    anatomy = anatomy_of(family_config(model_type))
    layer = family_model(model_type).get_submodule(anatomy.family.layers)[0]
    places: dict[tuple[str, str], list[int]] = {}
    for kind in KINDS:
        for part in anatomy.slices(kind):
            places.setdefault((part.module, part.axis), []).extend(
                part.places(neuron) for neuron in range(anatomy.size(kind))
            )
    shapes = anatomy.weight_shapes()
    parameters = dict(layer.named_parameters())
    for (module, axis), found in places.items():
        weight = parameters.get(f"{module}.weight", parameters.get(module))
        assert weight is not None
        d_out, d_in = shapes[module]
        assert weight.numel() == d_out * d_in
        assert sorted(found) == list(range(d_out if axis == "rows" else d_in))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parameters_of_all_neurons_are_those_of_their_weights(model_type: str) -> None:
    anatomy = anatomy_of(family_config(model_type))
    layer = family_model(model_type).get_submodule(anatomy.family.layers)[0]
    modules = anatomy.weight_shapes()
    # An output bias belongs to no neuron: it stays when all of them are removed.
    wanted = sum(
        parameter.numel()
        for name, parameter in layer.named_parameters()
        if name.removesuffix(".weight") in modules
        or (name.removesuffix(".bias") in modules and not name.startswith(anatomy.family.down))
    )
    found = sum(anatomy.size(kind) * anatomy.neuron_parameters(kind) for kind in KINDS)
    assert found == wanted


@pytest.mark.parametrize("model_type", FAMILIES)
def test_shapes_come_back(model_type: str) -> None:
    anatomy = anatomy_of(family_config(model_type))
    assert anatomy_from(anatomy.shape()) == anatomy


def test_the_shape_of_a_plain_model_says_no_more_than_it_needs() -> None:
    assert Anatomy("llama", 2, 8, 10, 4, 2, 2).shape() == {
        "model_type": "llama",
        "layers": 2,
        "d_model": 8,
        "d_ff": 10,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 2,
        "attention_bias": False,
    }


def test_places_in_a_weight_fused_head_by_head() -> None:
    anatomy = Anatomy("gpt_neox", 1, d_model=8, d_ff=6, heads=2, kv_heads=2, head_dim=4)
    found = {kind: anatomy.slices(kind)[0] for kind in ("q", "k", "v")}
    assert [found["q"].places(i) for i in (0, 3, 4)] == [0, 3, 12]
    assert [found["k"].places(i) for i in (0, 3, 4)] == [4, 7, 16]
    assert [found["v"].places(i) for i in (0, 3, 7)] == [8, 11, 23]


_SOUND = Anatomy("mixtral", 2, 8, 10, 4, 2, 2, experts=3).shape()


@pytest.mark.parametrize(
    "change",
    [
        {"experts": 0},
        {"experts": True},
        {"experts": 1 << 23, "d_ff": 1 << 20},
        {"heads": 1 << 22, "kv_heads": 1, "head_dim": 1 << 22},
        {"mlp_bias": 1},
        {"model_type": "llama"},
        {"model_type": "gpt_neox", "experts": 1},
        {"model_type": ["llama"]},
        {"kv_heads": 3},
        {"layers": -1},
        {"d_ff": 2.0},
        {"more": 1},
    ],
)
def test_hostile_shapes_are_refused(change: dict[str, Any]) -> None:
    assert anatomy_from(_SOUND).experts == 3
    with pytest.raises(FormatError):
        anatomy_from({**_SOUND, **change})


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "llama", "phi3"]),
    st.lists(st.integers()),
)


@given(st.dictionaries(st.sampled_from([*_SOUND, "mlp_bias", "more"]), _VALUES))
def test_no_metadata_crashes(change: dict[str, Any]) -> None:
    try:
        found = anatomy_from({**_SOUND, **change})
    except FormatError:
        return
    assert found.size("ffn") > 0 and found.weight_shapes()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(), "'gpt2' is not served: no entry"),
        (Qwen2MoeConfig(), "'qwen2_moe' is not served: it is a mixture of experts"),
        (Gemma3Config(), "it reads pictures too"),
        (family_config("qwen3_moe", mlp_only_layers=[1]), "one dense block and others experts"),
        (family_config("qwen3_moe", decoder_sparse_step=2), "decoder_sparse_step=2"),
        (family_config("olmoe", clip_qkv=8.0), "clip_qkv=8.0"),
        (family_config("gemma2", use_bidirectional_attention=True), "looks ahead"),
        (family_config("llama", num_local_experts=4), "num_local_experts=4"),
    ],
)
def test_models_that_are_not_served_are_told_why(config: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        anatomy_of(config)
