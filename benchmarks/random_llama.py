"""A random Llama on disk, larger than what a process holds of it, and a detection on it alone."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.peak import resident


@dataclass(frozen=True)
class Sizes:
    """Of a Llama: a layer's, and the vocabulary."""

    width: int
    inner: int
    groups: int = 8
    dim: int = 128
    vocabulary: int = 128_256


# 45 million parameters a layer, beside 131 million outside the layers.
SMALL = Sizes(2048, 5632, 8, 64, 32_000)
PUBLISHED = {"8b": Sizes(4096, 14_336), "70b": Sizes(8192, 28_672), "405b": Sizes(16_384, 53_248)}


def write_llama(folder: Path, layers: int, sizes: Sizes = SMALL) -> int:
    """A random Llama in bfloat16, written a layer at a time, a shard each; bytes of its weights.

    All layers have the same weights: drawing them takes longer than all else, and nothing that is
    measured here depends on it.
    """
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    width, inner, narrow = sizes.width, sizes.inner, sizes.groups * sizes.dim
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_key_value_heads=sizes.groups,
        num_hidden_layers=layers,
        num_attention_heads=width // sizes.dim,
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (narrow, width),
        "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }

    def matrix(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=draw)

    places, total = {}, 0

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal total
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(one.numel() * one.itemsize for one in tensors.values())

    drawn = {name: matrix(*shape) for name, shape in shapes.items()}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        held = {f"{at}.{name}.weight": weight for name, weight in drawn.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            held[f"{at}.{norm}.weight"] = torch.ones(width, dtype=torch.bfloat16)
        shard(layer + 1, held)
    outside = {name: matrix(sizes.vocabulary, width) for name in ("model.embed_tokens", "lm_head")}
    named = {f"{name}.weight": tensor for name, tensor in outside.items()}
    shard(layers + 1, {**named, "model.norm.weight": torch.ones(width, dtype=torch.bfloat16)})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    words = Tokenizer(WordLevel({str(token): token for token in range(8)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def detect_apart(folder: Path, prompts: int, tokens: int) -> tuple[int, float]:
    """`detect_alone` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        threads = torch.get_num_threads()
        peak, seconds = pool.apply(detect_alone, (folder, prompts, tokens, threads))
        return int(peak), float(seconds)


def detect_alone(folder: Path, prompts: int, tokens: int, threads: int) -> tuple[int, float]:
    """Exact, all kinds, one layer at a time: peak resident bytes of this process, and seconds."""
    from snt_backends import streaming

    from snt.backend import Batch
    from snt.scoring import detect_scores

    torch.set_num_threads(threads)
    started = time.perf_counter()
    model = streaming.load(folder, torch.float32)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, SMALL.vocabulary, (prompts, tokens), generator=draw)
    batches = [Batch(some, torch.ones_like(some, dtype=torch.bool)) for some in ids.split(4)]
    detect_scores(model, batches)
    return resident("VmHWM"), time.perf_counter() - started
