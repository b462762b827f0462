"""How the model families of transformers name and lay out their parts: one entry a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


def _causal(config: Any) -> str | None:
    if getattr(config, "use_bidirectional_attention", None):
        return (
            "its attention looks ahead (use_bidirectional_attention), as no text generator's does"
        )
    return None


def _all_sparse(config: Any) -> str | None:
    dense = getattr(config, "mlp_only_layers", None)
    step = getattr(config, "decoder_sparse_step", 1)
    if dense or step != 1:
        return (
            f"some of its layers have one dense block and others experts (mlp_only_layers={dense}, "
            f"decoder_sparse_step={step}), and a mask holds layers of one shape. "
            "Qwen3-30B-A3B and Qwen3-235B-A22B have experts in every layer"
        )
    return None


def _unclipped(config: Any) -> str | None:
    clip = getattr(config, "clip_qkv", None)
    if clip is not None:
        return (
            f"it clips queries, keys and values (clip_qkv={clip}), and which are clipped changes "
            "when a neuron is removed"
        )
    return None


def _nothing(_config: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Family:
    """How one `model_type` of transformers names its parts, relative to a decoder layer.

    Parts that share a module are fused. `fused` says how queries, keys and values lie in theirs:
    all rows of each in turn, or head by head; a fused gate and up holds all of gate, then all of
    up. gate None: a plain feed-forward block. norm: what the norms over queries and keys before the
    rotary embedding run over. experts: the config's count of experts, when the feed-forward parts
    are parameters (experts, out, in). d_ff: the config's count of neurons of a block or an expert.
    attention_bias, mlp_bias: None where the config says. rotates: an attribute of the attention
    that is false where a layer has no rotary embedding. wrong: why a config is not served, or None.
    """

    decoder: str = "model"
    layers: str = "model.layers"
    attention: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    fused: Literal["stacked", "per head"] | None = None
    norm: Literal["head", "all"] | None = None
    query_norm: str = "self_attn.q_norm"
    key_norm: str = "self_attn.k_norm"
    rotates: str | None = None
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    d_ff: str = "intermediate_size"
    experts: str | None = None
    # One expert's weights in a checkpoint: gate, up and down.
    expert_files: tuple[str, str, str] = (
        "mlp.experts.{}.gate_proj.weight",
        "mlp.experts.{}.up_proj.weight",
        "mlp.experts.{}.down_proj.weight",
    )
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    wrong: Callable[[Any], str | None] = _nothing


_GATE_UP = "mlp.gate_up_proj"
_MIXTURE = Family(
    gate="mlp.experts.gate_up_proj",
    up="mlp.experts.gate_up_proj",
    down="mlp.experts.down_proj",
    experts="num_experts",
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(attention_bias=True),
    "qwen3": Family(norm="head"),
    "gemma2": Family(wrong=_causal),
    "gemma3_text": Family(norm="head", wrong=_causal),
    "phi3": Family(
        query="self_attn.qkv_proj",
        key="self_attn.qkv_proj",
        value="self_attn.qkv_proj",
        fused="stacked",
        gate=_GATE_UP,
        up=_GATE_UP,
    ),
    "olmo2": Family(norm="all"),
    "smollm3": Family(rotates="use_rope"),
    "gpt_neox": Family(
        decoder="gpt_neox",
        layers="gpt_neox.layers",
        attention="attention",
        query="attention.query_key_value",
        key="attention.query_key_value",
        value="attention.query_key_value",
        output="attention.dense",
        fused="per head",
        gate=None,
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        mlp_bias=True,
    ),
    "mixtral": replace(
        _MIXTURE,
        experts="num_local_experts",
        expert_files=(
            "block_sparse_moe.experts.{}.w1.weight",
            "block_sparse_moe.experts.{}.w3.weight",
            "block_sparse_moe.experts.{}.w2.weight",
        ),
    ),
    "qwen3_moe": replace(_MIXTURE, norm="head", d_ff="moe_intermediate_size", wrong=_all_sparse),
    "olmoe": replace(_MIXTURE, norm="all", wrong=_unclipped),
}

REFUSED: Mapping[str, str] = {
    "gemma3": "it reads pictures too; save its language model alone (its type is gemma3_text)",
}
