"""Trainable float32 slices beside a frozen layer: the only parameters of a tuning.

y[..., rows] += x · ΔWᵀ for rows, y += x[..., cols] · ΔWᵀ for columns. The base weight keeps its
precision and gets no gradient; why float32: an update at the paper's learning rate is far below the
resolution of bfloat16 weights (method of Zhao et al., ICLR 2025, section 4; docs/method).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from snt.anatomy import Axis
from snt.backend import LoadedModel
from snt.delta_products import attach
from snt.errors import RequestError
from snt.masks import NeuronMask


@dataclass(frozen=True, order=True)
class SliceKey:
    """Rows (or columns) of one module of one decoder layer."""

    layer: int
    module: str
    axis: Axis

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.module}.{self.axis}"


def masked_slices(mask: NeuronMask) -> dict[SliceKey, Tensor]:
    """The weights of a mask's neurons: sorted, unique int32 indices per module and axis."""
    found: dict[SliceKey, list[Tensor]] = {}
    for (layer, kind), neurons in mask.neurons.items():
        for part in mask.anatomy.slices(kind):
            key = SliceKey(layer, part.module, part.axis)
            found.setdefault(key, []).append(part.places(neurons))
    return {key: torch.unique(torch.cat(found[key])).to(torch.int32) for key in sorted(found)}


def check_tunable(mask: NeuronMask) -> None:
    """Raises RequestError for neurons in experts: their weights are no module that deltas join."""
    experts = sum(len(at) for (_, kind), at in mask.neurons.items() if kind == "ffn")
    if experts and mask.anatomy.family.experts is not None:
        raise RequestError(
            f"the mask holds {experts} ffn neurons in the experts of a {mask.anatomy.model_type} "
            "model, and those cannot be tuned; detect again with --kinds q,k,v"
        )


def digest_of(slices: Mapping[SliceKey, tuple[Tensor, Tensor]]) -> str:
    """SHA-256 of deltas: the same values at the same places give the same digest."""
    digest = hashlib.sha256()
    for key in sorted(slices):
        indices, delta = slices[key]
        digest.update(str(key).encode())
        for tensor in (indices.int(), delta.float()):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Deltas(nn.Module):
    """ΔW of masked slices: rows (n, d_in), columns (d_out, n), float32, zero at the start.

    While `enabled` is False an attached model computes exactly what it did before.
    """

    def __init__(self, slices: Mapping[SliceKey, tuple[Tensor, Tensor]]) -> None:
        """`slices`: per key the int32 indices and the delta."""
        super().__init__()
        self.enabled = True
        self.keys = tuple(sorted(slices))
        self.values = nn.ParameterList([slices[key][1] for key in self.keys])
        for number, key in enumerate(self.keys):
            self.register_buffer(f"at_{number}", slices[key][0].long(), persistent=False)

    @classmethod
    def zeros(cls, slices: Mapping[SliceKey, Tensor], model: LoadedModel) -> Deltas:
        """Deltas that change nothing, for slices of `model`."""
        made = {}
        for key, indices in slices.items():
            d_out, d_in = model.weight_shape(key.layer, key.module)
            shape = (len(indices), d_in) if key.axis == "rows" else (d_out, len(indices))
            made[key] = (indices.to(model.device), torch.zeros(shape, device=model.device))
        return cls(made)

    @property
    def trainable(self) -> int:
        """Number of entries."""
        return sum(value.numel() for value in self.values)

    def indices(self, number: int) -> Tensor:
        """(n,) int64 rows or columns of slice `number`."""
        buffer: Tensor = self.get_buffer(f"at_{number}")
        return buffer

    def tensors(self) -> dict[SliceKey, tuple[Tensor, Tensor]]:
        """Per key the int32 indices and a float32 copy of the delta, on the CPU."""
        return {
            key: (self.indices(number).int().cpu(), value.detach().float().cpu().clone())
            for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True))
        }

    @contextmanager
    def attached(self, model: LoadedModel) -> Iterator[Deltas]:
        """Add the deltas to what the model's modules compute, until the end of the block."""
        with ExitStack() as attachments:
            for number, key in enumerate(self.keys):
                module = model.module(key.layer, key.module)
                current = partial(self._current, number)
                attachments.callback(attach(module, key.axis, self.indices(number), current))
            yield self

    def _current(self, number: int) -> Tensor | None:
        return self.values[number] if self.enabled else None
