"""A tiny random model of every family, with layers that differ where the family's layers do."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto import CONFIG_MAPPING

_COMMON = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
_TYPES = ["sliding_attention", "full_attention"]
_PARTIAL = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
_SLIDING = {"sliding_window": 3, "layer_types": _TYPES}

OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True, "attention_bias": True},
    "mistral": {"sliding_window": 3, "head_dim": 6},
    "qwen2": {"use_sliding_window": True, **_SLIDING},
    "qwen3": {"head_dim": 6, "use_sliding_window": True, **_SLIDING},
    "gemma2": {
        "head_dim": 6,
        "query_pre_attn_scalar": 9,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
        **_SLIDING,
    },
    "gemma3_text": {"head_dim": 6, "query_pre_attn_scalar": 9, **_SLIDING},
    "phi3": {"rope_parameters": _PARTIAL, "original_max_position_embeddings": 256},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": True, **_SLIDING},
    "gpt_neox": {"rope_parameters": _PARTIAL},
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 8},
    "qwen3_moe": {
        "head_dim": 6,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "norm_topk_prob": True,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8},
}
FAMILIES = tuple(OPTIONS)
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")


def family_config(model_type: str, **more: Any) -> Any:
    """Configuration of the family's tiny model."""
    return CONFIG_MAPPING[model_type](**{**_COMMON, **OPTIONS[model_type], **more})


def family_model(model_type: str, scale: float = 0.3, seed: int = 3, **more: Any) -> Any:
    """The family's tiny model, float32: matrices of standard deviation `scale`, uneven norms."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(model_type, **more)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "embed" not in name:
                parameter.normal_(0.0, scale)
    return model.requires_grad_(False)
