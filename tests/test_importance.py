"""Exact importance against the oracle: zero the weights, run the real block, take the norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.auto import CONFIG_MAPPING

from snt.anatomy import Anatomy, anatomy_of
from snt.backend import LayerActivations, Turn
from snt.importance.ffn import column_norms, ffn_importance
from snt.importance.query_key import head_factors, key_importance, query_importance
from snt.importance.value import value_gram, value_importance

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "head_dim": 8,
}
_SEEN: dict[str, Any] = {}


def _recording_attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
) -> tuple[Any, None]:
    groups = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(groups, 1).mT * scaling + mask
    attended = logits.softmax(-1) @ value.repeat_interleave(groups, 1)
    _SEEN.update(query=query, key=key, value=value, visible=mask == 0, scale=scaling)
    _SEEN.update(attended=attended)
    return attended.transpose(1, 2).contiguous(), None


def _pico(model_type: str, scale: float) -> Any:
    AttentionInterface.register("oracle_recording", _recording_attention)
    AttentionMaskInterface.register("oracle_recording", eager_mask)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SIZES)).double().eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.normal_(0.0, scale)
    model.set_attn_implementation("oracle_recording")
    return model


def _run(model: Any, ids: Any, attention_mask: Any) -> tuple[dict[str, Any], Any, Any]:
    layer = model.model.layers[0]
    seen: dict[str, Any] = {}
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, a: seen.update(middle=a[0])),
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _a, o: seen.update(query_raw=o)),
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _a, o: seen.update(key_raw=o)),
        layer.self_attn.register_forward_pre_hook(
            lambda _m, _a, kw: seen.update(rope=kw["position_embeddings"]), with_kwargs=True
        ),
        layer.self_attn.register_forward_hook(lambda _m, _a, o: seen.update(attn_out=o[0])),
        layer.mlp.register_forward_hook(lambda _m, a, o: seen.update(mlp_in=a[0], mlp_out=o)),
    ]
    with torch.no_grad():
        model.model(ids, attention_mask=attention_mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {**seen, **_SEEN}, seen["attn_out"], seen["mlp_out"]


def _single(value: Any) -> Any:
    """The oracle runs in float64, so that its own rounding is no part of the measured error."""
    return tuple(map(_single, value)) if isinstance(value, tuple) else value.float()


def _exact(seen: dict[str, Any], layer: Any, anatomy: Anatomy, real: Any) -> dict[str, Any]:
    batch, tokens = real.shape
    output = layer.self_attn.o_proj.weight.detach()

    def split(flat: Any) -> Any:
        return flat.view(batch, tokens, -1, anatomy.head_dim).transpose(1, 2)

    cos, sin = (part.expand(batch, -1, -1) for part in seen["rope"])
    half = anatomy.head_dim // 2
    cross = torch.cat([sin[..., half:], -sin[..., :half]], dim=-1)
    attention = LayerActivations(
        middle=seen["middle"],
        attended=seen["attended"],
        visible=seen["visible"],
        query_raw=split(seen["query_raw"]),
        key_raw=split(seen["key_raw"]),
        query=seen["query"],
        key=seen["key"],
        value=seen["value"],
        turn=Turn(cos, cross, torch.arange(2 * half).roll(half)),
        scale=seen["scale"],
    )
    per_head, per_group = (head_factors(output, n) for n in (anatomy.heads, anatomy.kv_heads))
    gram = value_gram(output, anatomy.kv_heads, anatomy.head_dim)
    down = column_norms(layer.mlp.down_proj.weight.detach())
    return {
        "ffn": ffn_importance(seen["middle"], down, real),
        "q": query_importance(attention, real, per_head),
        "k": key_importance(attention, real, per_group),
        "v": value_importance(seen["attended"], gram, real),
    }


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scale", [0.1, 0.6, 3.0])
def test_exact_equals_zero_and_rerun(model_type: str, side: str, scale: float) -> None:
    model = _pico(model_type, scale)
    anatomy = anatomy_of(model.config)
    layer = model.model.layers[0]
    ids = torch.randint(0, 64, (3, 7))
    lengths = [7, 4, 1]
    real = torch.zeros(3, 7, dtype=torch.bool)
    for row, length in enumerate(lengths):
        real[row, 7 - length :] = side == "left"
        real[row, :length] |= side == "right"
    seen, attn_out, mlp_out = _run(model, ids, real.long())
    single = {k: v if k in ("scale", "visible") else _single(v) for k, v in seen.items()}
    scores = _exact(single, layer, anatomy, real)
    for kind, mine in scores.items():
        assert mine.shape == (3, anatomy.size(kind))
        for neuron in range(anatomy.size(kind)):
            saved = {k: v.clone() for k, v in layer.state_dict().items()}
            with torch.no_grad():
                for part in anatomy.slices(kind):
                    module = layer.get_submodule(part.module)
                    weight = module.weight if part.axis == "rows" else module.weight.T
                    weight[part.offset + neuron] = 0
                    if part.axis == "rows" and module.bias is not None:
                        module.bias[part.offset + neuron] = 0
                if kind == "ffn":
                    # Same input as before, so that only this block's change is measured.
                    after, before = layer.mlp(seen["mlp_in"]), mlp_out
                else:
                    _, after, _ = _run(model, ids, real.long())
                    before = attn_out
            layer.load_state_dict(saved)
            change = torch.where(real.unsqueeze(-1), after - before, 0.0).double()
            expected = change.flatten(1).norm(dim=1)
            floor = 1e-6 * before.norm()
            torch.testing.assert_close(
                mine[:, neuron].double(), expected, rtol=1e-4, atol=float(floor)
            )
