"""Decoder layers run one by one, with the masks and positions that transformers itself gives them.

The model is transformers' own, its weights on the meta device. Its decoder runs with placeholders
for layers, which only take note of what they were called with; the layers stand apart, and one at a
time gets its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from snt.errors import RequestError
from snt_backends.shards import Shards, read_layer


class _Placeholder(nn.Module):
    """Notes its call and hands the hidden states on."""

    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[Tensor, Mapping[str, Any]] | None = None

    def forward(self, hidden: Tensor, **keywords: Any) -> Tensor:
        self.call = (hidden, keywords)
        return hidden


class Layers:
    """The layers of a decoder whose weights are on the meta device; takes them out of it."""

    def __init__(self, decoder: Any, layers: str, shards: Shards, dtype: torch.dtype) -> None:
        """`layers`: their path in the model, with which their names in the files begin."""
        self.decoder, self.shards, self.prefix, self.dtype = decoder, shards, layers, dtype
        self.modules: list[nn.Module] = list(decoder.layers)
        self.device = torch.device("cpu")
        norms = [(name, one) for name, one in decoder.named_children() if "norm" in name]
        if len(norms) != 1:
            raise RequestError(
                f"a {type(decoder).__name__} has {len(norms)} norms after its layers, where "
                "streaming knows one; use --backend full"
            )
        self.norm_name, self.norm = norms[0]
        self._placeholders = [_Placeholder() for _ in self.modules]
        decoder.layers = nn.ModuleList(self._placeholders)
        setattr(decoder, self.norm_name, nn.Identity())

    def calls(
        self, embedded: Tensor, real: Tensor | None, cache: DynamicCache | None
    ) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """What transformers calls every layer with: hidden states as they enter, and the rest.

        embedded: (B, T, d_model). real: (B, before + T) int64, of a cache that holds `before`.
        """
        self.decoder(
            inputs_embeds=embedded,
            attention_mask=real,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        found = []
        for one in self._placeholders:
            if one.call is None:
                raise RequestError(
                    f"a {type(self.decoder).__name__} does not run all its layers in turn; "
                    "use --backend full"
                )
            found.append(one.call)
            one.call = None
        return found

    def run(self, layer: int, hidden: Tensor, keywords: Mapping[str, Any]) -> Tensor:
        """One layer, which must hold its weights."""
        output: Any = self.modules[layer](hidden, **keywords)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states

    @contextmanager
    def in_memory(self) -> Iterator[_Prefetched]:
        """Layers in turn, read ahead; at the end of the block no layer holds weights."""
        prefetched = _Prefetched(self)
        try:
            yield prefetched
        finally:
            prefetched.close()

    def shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's weights."""
        return {name: tuple(p.shape) for name, p in self.modules[layer].named_parameters()}

    def read(self, layer: int, into: dict[str, Tensor]) -> None:
        """A layer's weights as stored, on the CPU."""
        read_layer(self.shards, f"{self.prefix}.{layer}", self.shapes(layer), into)

    def fill(self, layer: int, weights: Mapping[str, Tensor], held: dict[str, Tensor]) -> None:
        """Give a layer its weights, in the tensors `held`, which last for all layers."""
        for name in self.shapes(layer):
            if name not in held:
                held[name] = torch.empty(weights[name].shape, dtype=self.dtype, device=self.device)
            held[name].copy_(weights[name])
            _put(self.modules[layer], name, held[name])

    def empty(self, layer: int) -> None:
        """Back to the meta device."""
        for name, parameter in list(self.modules[layer].named_parameters()):
            _put(self.modules[layer], name, torch.empty_like(parameter, device="meta"))


class _Prefetched:
    """Of the layers one holds weights; those of the next are read, as stored, meanwhile."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="snt-read")
        self._current: int | None = None
        self._next: tuple[int, Future[None]] | None = None
        self._stored: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}

    def hold(self, layer: int) -> None:
        """Wait for a layer's weights, drop the one before, and begin to read the one after."""
        if self._next is None or self._next[0] != layer:
            self._read(layer)
        if self._next is not None:
            self._next[1].result()
        self._next = None
        self._drop()
        self._current = layer
        self._layers.fill(layer, self._stored, self._held)
        if layer + 1 < len(self._layers.modules):
            self._read(layer + 1)

    def close(self) -> None:
        self._next = None
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._drop()
        self._stored.clear()
        self._held.clear()

    def _read(self, layer: int) -> None:
        self._next = (layer, self._reader.submit(self._layers.read, layer, self._stored))

    def _drop(self) -> None:
        if self._current is not None:
            self._layers.empty(self._current)
            self._current = None


def _put(owner: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner.get_submodule(path)._parameters[last] = nn.Parameter(tensor, requires_grad=False)


def cache_of(held: DynamicLayer, layers: int) -> DynamicCache:
    """A cache that gives every layer the same `held`: only one layer runs with it."""
    cache = DynamicCache()
    cache.layers = [held] * layers
    return cache


def empty_cache() -> DynamicLayer:
    """Keys and values of no token yet."""
    return DynamicLayer()  # type: ignore[no-untyped-call]


def after(beginning: DynamicLayer, rows: int) -> DynamicLayer:
    """What `rows` rows that all begin alike find; `beginning` is left alone."""
    held: Any = beginning
    repeated = empty_cache()
    repeated.update(*(part.expand(rows, -1, -1, -1) for part in (held.keys, held.values)))
    return repeated


def fill_module(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a module outside the layers its weights, by their names in it."""
    for name, tensor in weights.items():
        _put(module, name, tensor)


def unique_tokens(rows: Sequence[Tensor]) -> Tensor:
    """Token ids that occur, sorted, int64."""
    joined = torch.cat([one.flatten() for one in rows])
    found: Tensor = joined.unique()  # type: ignore[no-untyped-call]
    return found
