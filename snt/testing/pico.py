"""Pico models: a real architecture of a few thousand parameters, with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> Any:
    """One token a byte, and the two tokens of the template."""
    letters = sorted(ByteLevel.alphabet())
    words = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(["<|start|>", "<|end|>"])
    made: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|start|>"
    )
    made.chat_template = template
    return made


def write_pico(folder: Path, seed: int = 0, template: str | None = TEMPLATE, **sizes: Any) -> Path:
    """A tiny Llama whose random weights are loud enough that prompts differ."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 258,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            **sizes,
        }
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    byte_tokenizer(template).save_pretrained(folder)
    return folder
