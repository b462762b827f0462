"""The whole model in one process, in full or half precision."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
)
from transformers.utils import logging

from snt.anatomy import Anatomy, anatomy_of
from snt.backend import Batch, Sampling, Visitor
from snt.errors import RunFailure
from snt_backends.decoding import continuations
from snt_backends.observing import observed
from snt_backends.shared_prefix import hidden_states, repeated

name = "full"
summary = "the whole model in one process, full or half precision, CPU or one GPU"


def load(directory: Path, dtype: torch.dtype | None = None) -> FullModel:
    """Load a model directory; `dtype` defaults to the checkpoint's."""
    # Whoever waits is told by the caller's progress; a second bar would break it.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    anatomy = anatomy_of(AutoConfig.from_pretrained(directory))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto")
    model.to(device).eval().requires_grad_(False)
    return FullModel(model, AutoTokenizer.from_pretrained(directory), anatomy, device)


def around(model: Any, tokenizer: Any) -> FullModel:
    """A transformers model that somebody else has loaded, and may be training."""
    return FullModel(model, tokenizer, anatomy_of(model.config), model.device)


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32.

    Elsewhere bfloat16 on a CPU is emulated and slower than float32.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def weight_digest(weight: Tensor) -> tuple[int, str]:
    """How many entries a weight has, and a digest of its bytes."""
    raw: Any = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    return weight.numel(), hashlib.blake2b(raw, digest_size=16).hexdigest()


def digests_of(weights: Mapping[str, tuple[int, Tensor]]) -> dict[str, tuple[int, str]]:
    """Per weight the number of entries it is given with, and a digest of its bytes."""
    return {name: (count, weight_digest(weight)[1]) for name, (count, weight) in weights.items()}


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
        weight = self._parameter(layer, module)
        if self.anatomy.in_experts(module):
            # (experts, out, in): neurons are rows of all experts in turn, or columns of them.
            turned = module == self.anatomy.family.down
            weight = weight.transpose(0, 1).flatten(1) if turned else weight.flatten(0, 1)
        return weight.float()

    def hidden(self, batch: Batch) -> Tensor:
        decoder = self.model.get_submodule(self.anatomy.family.decoder)
        on_device = Batch(batch.input_ids.to(self.device), batch.real.to(self.device))
        return hidden_states(decoder, on_device)

    def forward(self, batch: Batch, cache: DynamicCache | None = None) -> None:
        """Every token of a batch through the decoder, after what `cache` holds, and into it."""
        length = 0 if cache is None else cache.get_seq_length()
        before = batch.real.new_ones(len(batch.real), length)
        self.model.get_submodule(self.anatomy.family.decoder)(
            input_ids=batch.input_ids,
            attention_mask=torch.cat([before, batch.real], dim=1).long(),
            past_key_values=cache,
            use_cache=cache is not None,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        output: Tensor = head(hidden).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return output if cap is None else cap * torch.tanh(output / cap)

    def generate(
        self,
        batch: Batch,
        new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling | None = None,
    ) -> Tensor:
        # The last position of every row is a strided view; on a CPU in bfloat16 its product with
        # the head would copy the head once a row (3.4 GB, 5 s at 64 rows of SmolLM2-135M).
        hook = self.model.get_output_embeddings().register_forward_pre_hook(
            lambda _module, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
        )
        on_device = Batch(batch.input_ids.to(self.device), batch.real.to(self.device))
        try:
            with self.without_gradients():
                return continuations(self.model, on_device, new_tokens, stop_ids, sampling).cpu()
        finally:
            hook.remove()

    def without_gradients(self) -> AbstractContextManager[Any]:
        """While only an answer is wanted."""
        return torch.inference_mode()

    def weight_digests(self) -> dict[str, tuple[int, str]]:
        return {name: weight_digest(weight) for name, weight in self.model.named_parameters()}

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
        if self.anatomy.in_experts(module):
            return self.anatomy.weight_shapes()[module]
        d_out, d_in = self._parameter(layer, module).shape
        return int(d_out), int(d_in)

    def observe(
        self, batches: Iterable[Batch], visitor: Visitor, beginning: Tensor | None = None
    ) -> None:
        layers = [self._layer(number) for number in range(self.anatomy.layers)]
        with self.without_gradients(), observed(self.model, layers, self.anatomy) as seen:

            def show(batch: Batch, cache: DynamicCache | None) -> None:
                on_device = Batch(batch.input_ids.to(self.device), batch.real.to(self.device))
                seen.visit = lambda layer, activations: visitor(layer, on_device, activations, self)
                seen.layers_seen = 0
                self.forward(on_device, cache)
                if seen.layers_seen != self.anatomy.layers:
                    raise RunFailure(
                        f"{seen.layers_seen} of {self.anatomy.layers} layers were observed; "
                        f"model type {self.anatomy.model_type!r} bypasses its attention interface"
                    )

            first = DynamicCache()
            if beginning is not None:
                row = beginning.unsqueeze(0)
                seen.keep_beginning = True
                show(Batch(row, torch.ones_like(row, dtype=torch.bool)), first)
                seen.keep_beginning = False
            for batch in batches:
                show(batch, None if beginning is None else repeated(first, len(batch.real)))

    def _parameter(self, layer: int, module: str) -> Tensor:
        owner, _, name = module.rpartition(".")
        if self.anatomy.in_experts(module):
            found: Tensor = getattr(self.module(layer, owner), name)
        else:
            found = self.module(layer, module).get_parameter("weight")
        return found.detach()

    def _layer(self, layer: int) -> nn.Module:
        layers: Any = self.model.get_submodule(self.anatomy.family.layers)
        return layers[layer]  # type: ignore[no-any-return]
