"""One decoder layer in memory at a time, read from the checkpoint as it lies.

Every layer is read once for all prompts together; the next one is read while this one computes. So
the memory that a detection takes follows from the size of a layer, not of the model.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.big_modeling import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from snt.anatomy import Anatomy, anatomy_of
from snt.backend import Batch, Sampling, Visitor
from snt.errors import RequestError, RunFailure
from snt_backends.full import fast_dtype as fast_dtype
from snt_backends.observing import observed
from snt_backends.one_layer import Layers, after, cache_of, empty_cache, fill_module, unique_tokens
from snt_backends.shards import Shards, converted
from snt_backends.shared_prefix import shared_length
from snt_backends.waiting import HiddenStates

name = "streaming"
summary = "one layer in memory at a time, for models larger than memory; detects and measures"

# Hidden states of all prompts beyond this many bytes lie on disk.
HIDDEN_BYTES = 1 << 30
# Numbers of the language-model head that are converted at once.
_HEAD_ENTRIES = 1 << 24
# The option's number in malloc.h.
_MMAP_THRESHOLD = -3


def load(directory: Path, dtype: torch.dtype | None = None) -> StreamingModel:
    """Open a model directory; `dtype`, of the computation, defaults to the checkpoint's.

    Raises RequestError for a mixture of experts or a quantised checkpoint, FormatError where
    weights are missing.
    """
    _return_freed_memory()
    config = AutoConfig.from_pretrained(directory)
    anatomy = anatomy_of(config)
    if anatomy.family.experts is not None:
        raise RequestError(
            f"a {anatomy.model_type!r} model has experts, which its files hold one by one; "
            "streaming reads layers as they lie. Use --backend full"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise RequestError(
            f"{directory} holds quantised weights, which streaming does not read; give the "
            "checkpoint in full precision, or use another backend"
        )
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    with init_empty_weights(include_buffers=False):
        skeleton: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype
        )
    skeleton.tie_weights()
    skeleton.eval().requires_grad_(False)
    shards = Shards.of(directory)
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    places = _places(skeleton, shards)
    decoder = skeleton.get_submodule(anatomy.family.decoder)
    layers = Layers(decoder, anatomy.family.layers, shards, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers.device = device
    for _, buffer in decoder.named_buffers():
        buffer.data = buffer.data.to(device)
    norm = {
        one: converted(
            shards.tensor(f"{anatomy.family.decoder}.{layers.norm_name}.{one}"), dtype, device
        )
        for one, _ in layers.norm.named_parameters()
    }
    fill_module(layers.norm, norm)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return StreamingModel(
        skeleton, layers, shards, places, tokenizer, anatomy, device, dtype, parameters
    )


def _return_freed_memory() -> None:
    """Have the C library of Linux map blocks of 1 MiB or more, and give them back when freed.

    Left to itself it puts ever larger ones on the heap, where what a layer needs for a moment lies
    between the scores that stay, and the gaps add up over the layers.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 20)


@dataclass(frozen=True)
class _Places:
    """Weights outside the layers: the embedding's module, and the head's name in the files."""

    embedding: str
    head: str


def _places(skeleton: Any, shards: Shards) -> _Places:
    names = {id(module): path for path, module in skeleton.named_modules()}
    embedding, head = skeleton.get_input_embeddings(), skeleton.get_output_embeddings()
    if head.weight is embedding.weight:
        return _Places(names[id(embedding)], f"{names[id(embedding)]}.weight")
    # GPT-NeoX's files call it as its code did before.
    own = [f"{names[id(head)]}.weight", "embed_out.weight"]
    return _Places(names[id(embedding)], next((one for one in own if one in shards), own[0]))


@dataclass(frozen=True)
class _Run:
    """Rows that go through a layer together.

    real: (rows, before + T) int64, or None where all is real. begins: keys and values are kept for
    the runs after it that follow it.
    """

    batch: Batch
    real: Tensor | None
    begins: bool = False
    follows: bool = False


@dataclass(frozen=True)
class StreamingModel:
    """A model whose weights stay in its files; transformers' modules, on the meta device."""

    skeleton: Any
    layers: Layers
    shards: Shards
    places: _Places
    tokenizer: Any
    anatomy: Anatomy
    device: torch.device
    dtype: torch.dtype
    parameters: int

    # A visitor sees all batches in a layer before the next layer begins.
    layer_by_layer = True

    @property
    def context(self) -> int | None:
        length = getattr(self.skeleton.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    def module(self, layer: int, module: str) -> nn.Module:
        found: nn.Module = self.layers.modules[layer].get_submodule(module)
        return found

    def weight(self, layer: int, module: str) -> Tensor:
        held = self.module(layer, module).get_parameter("weight").detach()
        if held.is_meta:
            stored = self.shards.tensor(f"{self.layers.prefix}.{layer}.{module}.weight")
            held = converted(stored, self.dtype, self.device)
        return held.float()

    def weight_shape(self, layer: int, module: str) -> tuple[int, int]:
        d_out, d_in = self.module(layer, module).get_parameter("weight").shape
        return int(d_out), int(d_in)

    def observe(
        self, batches: Iterable[Batch], visitor: Visitor, beginning: Tensor | None = None
    ) -> None:
        runs = []
        length = 0
        if beginning is not None:
            row, length = beginning.unsqueeze(0), len(beginning)
            first = Batch(row, torch.ones_like(row, dtype=torch.bool))
            runs.append(_Run(first, first.real.long(), begins=True))
        for batch in batches:
            before = batch.real.new_ones(len(batch.real), length)
            real = torch.cat([before, batch.real], dim=1).long()
            runs.append(_Run(batch, real, follows=beginning is not None))
        modules = self.layers.modules
        with torch.inference_mode(), observed(self.skeleton, modules, self.anatomy) as seen:

            def run(layer: int, one: _Run, hidden: Tensor, keywords: Mapping[str, Any]) -> Tensor:
                if one.begins:
                    seen.beginning.clear()
                on_device = Batch(
                    one.batch.input_ids.to(self.device), one.batch.real.to(self.device)
                )
                seen.visit = lambda at, activations: visitor(at, on_device, activations, self)
                seen.keep_beginning, seen.layers_seen = one.begins, 0
                output = self.layers.run(layer, hidden, keywords)
                if seen.layers_seen != 1:
                    raise RunFailure(
                        f"layer {layer} was observed {seen.layers_seen} times; model type "
                        f"{self.anatomy.model_type!r} bypasses its attention interface"
                    )
                return output

            self._through(runs, run).close()

    def hidden(self, batch: Batch) -> Tensor:
        return next(self.hidden_states([batch]))

    def hidden_states(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """What `hidden` gives of every batch in turn; the layers are read once for them all."""
        runs, lengths = [], []
        for batch in batches:
            length, real = shared_length(batch), batch.real.long()
            lengths.append(length)
            if length:
                first = Batch(batch.input_ids[:1, :length], batch.real[:1, :length])
                runs.append(_Run(first, None, begins=True))
            rest = Batch(batch.input_ids[:, length:], batch.real[:, length:])
            runs.append(_Run(rest, real, follows=length > 0))

        def run(layer: int, _one: _Run, hidden: Tensor, keywords: Mapping[str, Any]) -> Tensor:
            return self.layers.run(layer, hidden, keywords)

        # Not around a yield: what a generator sets there would hold for whoever asks it.
        with torch.no_grad():
            states = self._through(runs, run)
        try:
            number = 0
            for length in lengths:
                parts = []
                with torch.no_grad():
                    for _ in range(2 if length else 1):
                        parts.append(self.layers.norm(states.take(number).to(self.device)))
                        number += 1
                    rows = len(parts[-1])
                    parts[0] = parts[0].expand(rows, -1, -1)
                yield parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        finally:
            states.close()

    def logits(self, hidden: Tensor) -> Tensor:
        parts = []
        # Read as it is multiplied: nobody who only detects has to hold it.
        with self.shards.mapped(self.places.head) as head:
            step = max(1, _HEAD_ENTRIES // head.shape[1])
            for low in range(0, len(head), step):
                rows = converted(head[low : low + step], self.dtype, self.device)
                parts.append(nn.functional.linear(hidden, rows).float())
        output = torch.cat(parts, dim=-1)
        cap = getattr(self.skeleton.config, "final_logit_softcapping", None)
        return output if cap is None else cap * torch.tanh(output / cap)

    def generate(
        self,
        batch: Batch,
        new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling | None = None,
    ) -> Tensor:
        raise self._refusal("writing replies, which would read the whole model for every token,")

    def weight_digests(self) -> Mapping[str, tuple[int, str]]:
        raise self._refusal("tuning, which goes forth and back through all layers at every step,")

    def training(self) -> AbstractContextManager[None]:
        raise self._refusal("tuning, which goes forth and back through all layers at every step,")

    def _refusal(self, work: str) -> RequestError:
        return RequestError(
            f"the backend 'streaming' holds one layer at a time, and {work} needs all of them; "
            "use --backend full, int8 or multi-gpu. Streaming detects, measures perplexity and "
            "reads the first token of a reply"
        )

    def _through(
        self,
        runs: Sequence[_Run],
        run: Callable[[int, _Run, Tensor, Mapping[str, Any]], Tensor],
    ) -> HiddenStates:
        """All runs through all layers; what comes out, before the norm, by number of the run."""
        shapes = [(*one.batch.input_ids.shape, self.anatomy.d_model) for one in runs]
        states = HiddenStates(shapes, self.dtype, HIDDEN_BYTES)
        try:
            self._embed(runs, states)
            with self.layers.in_memory() as memory:
                for layer in range(self.anatomy.layers):
                    memory.hold(layer)
                    self._layer(layer, runs, run, states)
        except BaseException:
            states.close()
            raise
        return states

    def _layer(
        self,
        layer: int,
        runs: Sequence[_Run],
        run: Callable[[int, _Run, Tensor, Mapping[str, Any]], Tensor],
        states: HiddenStates,
    ) -> None:
        """All runs through one layer, in their order."""
        beginning = empty_cache()
        for number, one in enumerate(runs):
            held = None
            if one.begins:
                held = beginning = empty_cache()
            elif one.follows:
                held = after(beginning, len(one.batch.real))
            cache = None if held is None else cache_of(held, self.anatomy.layers)
            hidden = states.take(number).to(self.device)
            # Of what enters the decoder only shape, precision and device matter here.
            like = hidden.new_zeros(()).expand(hidden.shape)
            real = None if one.real is None else one.real.to(self.device)
            _, keywords = self.layers.calls(like, real, cache)[layer]
            states.put(number, run(layer, one, hidden, keywords))

    def _embed(self, runs: Sequence[_Run], states: HiddenStates) -> None:
        """What enters the first layer. Only the rows of tokens that occur are read."""
        module = self.skeleton.get_submodule(self.places.embedding)
        tokens = unique_tokens([one.batch.input_ids for one in runs])
        rows = self.shards.rows(f"{self.places.embedding}.weight", tokens)
        whole = module.weight
        fill_module(module, {"weight": converted(rows, self.dtype, self.device)})
        try:
            for number, one in enumerate(runs):
                places = torch.searchsorted(tokens, one.batch.input_ids.contiguous()).to(
                    self.device
                )
                entering, _ = self.layers.calls(module(places), None, None)[0]
                states.put(number, entering)
        finally:
            module._parameters["weight"] = whole
