"""The backend under test, the model it holds, and a plain transformers model to hold it against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.anatomy import KINDS
from snt.backend import Backend, Batch, LoadedModel
from snt.deltas import Deltas, masked_slices
from snt.masks import NeuronMask

# Neurons of every kind, at the first and last places too.
NEURONS = {
    (0, "ffn"): [0, 40],
    (1, "ffn"): [47],
    (0, "q"): [3, 31],
    (1, "k"): [15],
    (1, "v"): [0, 7],
}


class BackendFault(AssertionError):
    """The backend does not meet the protocol; the message says in what."""


@dataclass(frozen=True)
class Subject:
    """`reference`: transformers' model with the weights that the backend says it holds, float32.

    What `close` to it means: to `tolerance` entry by entry where the backend is `exact`, else of
    the norm of the difference over that of what was expected.
    """

    backend: Backend
    model: LoadedModel
    directory: Path
    reference: Any
    exact: bool
    tolerance: float

    def close(self, what: str, found: Tensor, expected: Tensor) -> None:
        """Raises BackendFault where two tensors differ by more than the tolerance."""
        found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
        check(
            found.shape == expected.shape, f"{what}: shape {_shape(found)}, not {_shape(expected)}"
        )
        check(bool(found.isfinite().all()), f"{what}: not all of it is finite")
        norm = float(expected.norm())
        if self.exact:
            far = (found - expected).abs() - self.tolerance * expected.abs()
            off = float(far.max()) if len(found.flatten()) else 0.0
            bound = 1e-2 * self.tolerance * max(1.0, norm)
            check(
                off <= bound, f"{what}: an entry is {off:.3g} further off than {self.tolerance:g}"
            )
        else:
            off = float((found - expected).norm()) / max(norm, 1e-30)
            check(off <= self.tolerance, f"{what}: {off:.3g} off, more than {self.tolerance:g}")

    @property
    def mask(self) -> NeuronMask:
        """A few neurons of every kind."""
        neurons = {place: torch.tensor(at, dtype=torch.int32) for place, at in NEURONS.items()}
        return NeuronMask(self.model.anatomy, neurons)

    def deltas(self, scale: float = 0.1) -> Deltas:
        """Deltas of `mask`, drawn from a fixed seed."""
        made = Deltas.zeros(masked_slices(self.mask), self.model)
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in made.values:
                value.copy_(scale * torch.randn(value.shape, generator=draw))
        return made

    def hidden(self, batch: Batch) -> Tensor:
        """The backend's final hidden states, of real positions (n, d_model)."""
        with torch.inference_mode():
            return self.model.hidden(batch).cpu()[batch.real]

    def expected_hidden(self, batch: Batch) -> Tensor:
        """The reference's final hidden states, of real positions (n, d_model)."""
        with torch.inference_mode():
            output = self.reference.model(
                input_ids=batch.input_ids, attention_mask=batch.real.long(), use_cache=False
            )
        found: Tensor = output.last_hidden_state[batch.real]
        return found


def check(holds: bool, otherwise: str) -> None:
    """Raises BackendFault with what is wrong."""
    if not holds:
        raise BackendFault(otherwise)


def batch_of(lengths: tuple[int, ...], left: bool = False, seed: int = 11) -> Batch:
    """Random prompts of these lengths, padded to the longest."""
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(0, 250, (len(lengths), width), generator=draw)
    real = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        real[row, slice(width - length, None) if left else slice(length)] = True
    return Batch(ids, real)


def reference_of(model: LoadedModel, directory: Path) -> Any:
    """Transformers' model of a directory with the weights that `model` says it holds, float32."""
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    made.eval().requires_grad_(False)
    family = model.anatomy.family
    for number, layer in enumerate(made.get_submodule(family.layers)):
        for module in {*model.anatomy.weight_shapes(), family.output}:
            layer.get_submodule(module).weight.data.copy_(model.weight(number, module))
    return made


def oracle(subject: Subject, batch: Batch) -> dict[tuple[int, str], Tensor]:
    """Importances (B, n) per (layer, kind): weights zeroed, the real block run again, the norm."""
    anatomy, reference = subject.model.anatomy, subject.reference
    family, calls = anatomy.family, []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        calls.append((module, args, kwargs))

    layers = reference.get_submodule(family.layers)
    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(record, with_kwargs=True)
        for layer in layers
        for name in (family.attention, "mlp")
    ]
    try:
        subject.expected_hidden(batch)
    finally:
        for hook in hooks:
            hook.remove()

    def output(call: Any) -> Tensor:
        module, args, kwargs = call
        found = module(*args, **kwargs)
        first: Tensor = found[0] if isinstance(found, tuple) else found
        return torch.where(batch.real.unsqueeze(-1), first, 0.0)

    found = {}
    with torch.inference_mode():
        for number, layer in enumerate(layers):
            for kind in KINDS:
                call = calls[2 * number + int(kind == "ffn")]
                before, norms = output(call), []
                for neuron in range(anatomy.size(kind)):
                    saved = []
                    for part in anatomy.slices(kind):
                        weight = layer.get_submodule(part.module).weight.data
                        at = part.places(neuron)
                        view = weight[at] if part.axis == "rows" else weight[:, at]
                        saved.append((view, view.clone()))
                        view.zero_()
                    norms.append((output(call) - before).flatten(1).norm(dim=1))
                    for view, values in saved:
                        view.copy_(values)
                found[number, kind] = torch.stack(norms, dim=1)
    return found


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
