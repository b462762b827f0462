"""The whole model in one process, in full or half precision."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.utils import logging

from snt.anatomy import Anatomy, anatomy_of
from snt.backend import Batch, LayerActivations, Turn, Visitor
from snt.errors import RunFailure
from snt_backends.shared_prefix import hidden_states

name = "full"
summary = "the whole model in one process, full or half precision, CPU or one GPU"

_ATTENTION = "snt_observed"


def load(directory: Path, dtype: torch.dtype | None = None) -> FullModel:
    """Load a model directory; `dtype` defaults to the checkpoint's."""
    # Whoever waits is told by the caller's progress; a second bar would break it.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    anatomy = anatomy_of(AutoConfig.from_pretrained(directory))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto")
    model.to(device).eval().requires_grad_(False)
    return FullModel(model, AutoTokenizer.from_pretrained(directory), anatomy, device)


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32.

    Elsewhere bfloat16 on a CPU is emulated and slower than float32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


@dataclass(frozen=True)
class FullModel:
    """A transformers model that is wholly in memory."""

    model: Any
    tokenizer: Any
    anatomy: Anatomy
    device: torch.device

    @property
    def context(self) -> int | None:
        length = getattr(self.model.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    def module(self, layer: int, module: str) -> nn.Module:
        found: nn.Module = self._layer(layer).get_submodule(module)
        return found

    def weight(self, layer: int, module: str) -> Tensor:
        weight: Any = self.module(layer, module).weight
        return weight.detach().float()  # type: ignore[no-any-return]

    def hidden(self, batch: Batch) -> Tensor:
        decoder = self.model.get_submodule(self.anatomy.family.decoder)
        on_device = Batch(batch.input_ids.to(self.device), batch.real.to(self.device))
        return hidden_states(decoder, on_device)

    def forward(self, batch: Batch) -> None:
        """Every row through the decoder whole, so that what observes it sees every token."""
        self.model.get_submodule(self.anatomy.family.decoder)(
            input_ids=batch.input_ids, attention_mask=batch.real.long(), use_cache=False
        )

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        output: Tensor = head(hidden).float()
        return output

    def generate(self, batch: Batch, new_tokens: int, stop_ids: Sequence[int]) -> Tensor:
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids) or None,
            pad_token_id=stop_ids[0] if stop_ids else 0,
        )
        # The last position of every row is a strided view; on a CPU in bfloat16 its product with
        # the head would copy the head once a row (3.4 GB, 5 s at 64 rows of SmolLM2-135M).
        hook = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda _module, inputs: (inputs[0].contiguous(),)
        )
        try:
            with torch.inference_mode():
                whole: Tensor = self.model.generate(
                    input_ids=batch.input_ids.to(self.device),
                    attention_mask=batch.real.to(self.device).long(),
                    generation_config=settings,
                )
        finally:
            hook.remove()
        return whole[:, batch.input_ids.shape[1] :].cpu()

    def weight_digests(self) -> dict[str, tuple[int, str]]:
        found = {}
        for name, parameter in self.model.named_parameters():
            raw = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
            found[name] = (parameter.numel(), hashlib.blake2b(raw, digest_size=16).hexdigest())
        return found

    @contextmanager
    def training(self) -> Iterator[None]:
        # On CPUs the backward pass of fused attention is slower than that of plain matrix products
        # (SmolLM2-135M, bfloat16, 90 tokens: a whole step takes 1.2 times as long with it).
        before = self.model.config._attn_implementation
        try:
            if self.device.type == "cpu":
                self.model.set_attn_implementation("eager")
            yield
        finally:
            self.model.set_attn_implementation(before)

    def weight_shape(self, layer: int, module: str) -> tuple[int, int]:
        weight: Any = self.module(layer, module).weight
        return int(weight.shape[0]), int(weight.shape[1])

    def observe(self, batches: Iterable[Batch], visitor: Visitor) -> None:
        with torch.inference_mode(), _observed(self) as seen:
            for batch in batches:
                on_device = Batch(batch.input_ids.to(self.device), batch.real.to(self.device))
                seen.visit = lambda layer, activations, b=on_device: visitor(
                    layer, b, activations, self
                )
                seen.layers_seen = 0
                self.forward(on_device)
                if seen.layers_seen != self.anatomy.layers:
                    raise RunFailure(
                        f"{seen.layers_seen} of {self.anatomy.layers} layers were observed; "
                        f"model type {self.anatomy.model_type!r} bypasses its attention interface"
                    )

    def _layer(self, layer: int) -> nn.Module:
        layers: Any = self.model.get_submodule(self.anatomy.family.layers)
        return layers[layer]  # type: ignore[no-any-return]


@dataclass
class _Seen:
    """Tensors of the layer that is running; they are handed on at its down projection."""

    visit: Any = None
    layers_seen: int = 0
    parts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _observed(model: FullModel) -> Iterator[_Seen]:
    """Hooks on every layer, and an attention that shows what it computes; all undone at the end."""
    seen = _Seen()
    anatomy, family = model.anatomy, model.anatomy.family

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        repeat = query.shape[1] // key.shape[1]
        mask = mask[..., : key.shape[2]]
        logits = (query @ key.repeat_interleave(repeat, 1).mT).float() * scaling + mask.float()
        weights = logits.softmax(-1).to(query.dtype)
        attended = weights @ value.repeat_interleave(repeat, 1)
        seen.parts.update(query=query, key=key, value=value, visible=mask == 0, scale=scaling)
        seen.parts.update(attended=attended)
        return attended.transpose(1, 2).contiguous(), None

    def split(flat: Tensor) -> Tensor:
        return flat.view(*flat.shape[:2], -1, anatomy.head_dim).transpose(1, 2).float()

    def finish(layer: int, middle: Tensor) -> None:
        parts = seen.parts
        cos, sin = (part.expand(len(middle), -1, -1).float() for part in parts["rope"])
        activations = LayerActivations(
            middle=middle,
            query_raw=split(parts["query_raw"]),
            key_raw=split(parts["key_raw"]),
            query=parts["query"].float(),
            key=parts["key"].float(),
            value=parts["value"].float(),
            turn=_rotate_half(cos, sin),
            visible=parts["visible"],
            attended=parts["attended"].float(),
            scale=parts["scale"],
        )
        parts.clear()
        seen.layers_seen += 1
        seen.visit(layer, activations)

    def keep(part: str) -> Any:
        return lambda _module, _inputs, output: seen.parts.__setitem__(part, output)

    def rope(_module: Any, _args: Any, keywords: Any) -> None:
        seen.parts["rope"] = keywords["position_embeddings"]

    AttentionInterface.register(_ATTENTION, attention)
    # Without a mask of its own, a registered attention silently becomes non-causal.
    AttentionMaskInterface.register(_ATTENTION, eager_mask)
    before = model.model.config._attn_implementation
    hooks = []
    try:
        model.model.set_attn_implementation(_ATTENTION)
        for layer in range(anatomy.layers):
            hooks += [
                model.module(layer, family.query).register_forward_hook(keep("query_raw")),
                model.module(layer, family.key).register_forward_hook(keep("key_raw")),
                model.module(layer, family.attention).register_forward_pre_hook(
                    rope, with_kwargs=True
                ),
                model.module(layer, family.down).register_forward_pre_hook(
                    lambda _module, inputs, at=layer: finish(at, inputs[0])
                ),
            ]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        model.model.set_attn_implementation(before)


def _rotate_half(cos: Tensor, sin: Tensor) -> Turn:
    """The turn of (B, T, D) cosines and sines in the rotate-half layout: partners are D/2 apart."""
    half = cos.shape[-1] // 2
    # rotate_half puts −x[d + half] at d < half and x[d − half] at d ≥ half.
    cross = torch.cat([sin[..., half:], -sin[..., :half]], dim=-1)
    return Turn(cos, cross, torch.arange(2 * half, device=cos.device).roll(half))
