"""A model whose decoder weights bitsandbytes holds, all that is computed from them in floats.

Every product is that of the dequantised weight with the inputs as they are, in detection, training
and evaluation alike, on every device. LLM.int8's own product rounds the inputs too, by row and with
outliers that are looked for in the whole batch: a prompt's result would depend on its neighbours,
a removed neuron would not be one whose weights are zero, and no weight would explain what the
importances measure. docs/quantised.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn

from snt.anatomy import Anatomy
from snt.errors import RunFailure
from snt_backends.full import FullModel, digests_of


@dataclass(frozen=True)
class QuantisedModel(FullModel):
    """A transformers model whose decoder projections are bitsandbytes modules."""

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, anatomy: Anatomy, device: torch.device
    ) -> QuantisedModel:
        """Take over a loaded model, its products made those of the dequantised weights.

        Raises RunFailure when a projection with neurons in it was left in full precision.
        """
        modules = quantised_modules(model)
        wanted = {
            f"{anatomy.family.layers}.{layer}.{module}"
            for layer in range(anatomy.layers)
            for module in anatomy.weight_shapes()
        }
        left = sorted(wanted - modules.keys())
        if left:
            raise RunFailure(
                f"{len(left)} projections were not quantised, {left[0]} first; use --backend full"
            )
        for module in modules.values():
            if _in_8_bits(module):
                module.init_8bit_state()
                module.__class__ = ExactLinear8bit
            elif device.type == "cpu":
                module.__class__ = ExactLinear4bit
        return cls(model, tokenizer, anatomy, device)

    @property
    def parameters(self) -> int:
        modules = quantised_modules(self.model)
        packed = {id(module.weight) for module in modules.values()}
        plain: int = sum(one.numel() for one in self.model.parameters() if id(one) not in packed)
        return plain + sum(_entries(module) for module in modules.values())

    def weight(self, layer: int, module: str) -> Tensor:
        return dequantised(self.module(layer, module)).float()

    def weight_shape(self, layer: int, module: str) -> tuple[int, int]:
        held: Any = self.module(layer, module)
        return int(held.out_features), int(held.in_features)

    def weight_digests(self) -> dict[str, tuple[int, str]]:
        """Of codes and scales; the entries are those of the weight that they stand for."""
        modules = quantised_modules(self.model)
        held = {
            f"{name}.{part}": (_entries(module), tensor)
            for name, module in modules.items()
            for part, tensor in stored(module).items()
        }
        for name, parameter in self.model.named_parameters():
            held.setdefault(name, (parameter.numel(), parameter))
        return digests_of(held)


def quantised_modules(model: nn.Module) -> dict[str, Any]:
    """By name the modules of a model whose weights bitsandbytes holds."""
    kinds = (Linear4bit, Linear8bitLt)
    return {name: one for name, one in model.named_modules() if isinstance(one, kinds)}


def stored(module: Any) -> Mapping[str, Tensor]:
    """The tensors that a quantised weight consists of: codes and scales."""
    if _in_8_bits(module):
        return {"weight": module.state.CB, "scale": module.state.SCB}
    state = module.weight.quant_state
    return {"weight": module.weight.data, "scale": state.absmax}


def dequantised(module: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight (d_out, d_in) that a quantised module stands for.

    8 bits: codes times a row's largest magnitude / 127 (Dettmers et al., LLM.int8(), 2022). 4 bits:
    the codes' nf4 values times a block's largest magnitude (Dettmers et al., QLoRA, 2023), rounded
    to the precision that the model was loaded in, as its own products take it.
    """
    if _in_8_bits(module):
        # Codes are whole in any float, so that there is one rounding, after the product.
        scale = (module.state.SCB / 127).unsqueeze(1)
        weight: Tensor = module.state.CB.to(dtype).mul_(scale)
        return weight
    codes, state = module.weight.data, module.weight.quant_state
    if codes.device.type == "cpu" and module.in_features % state.blocksize:
        return _decoded(codes, state).to(dtype)
    return dequantize_4bit(codes, state).to(dtype)


def _decoded(codes: Tensor, state: Any) -> Tensor:
    """What 4-bit codes of any shape mean, float32.

    bitsandbytes 0.50 takes blocks to end with the rows on a CPU, and decodes other shapes wrongly.
    """
    pairs = torch.cartesian_prod(state.code, state.code).float()
    size = int(state.shape.numel())
    values = nn.functional.embedding(codes.flatten().int(), pairs).flatten()[:size]
    scale = state.absmax.float().repeat_interleave(state.blocksize)[:size]
    weight: Tensor = (values * scale).view(state.shape)
    return weight


class ExactLinear8bit(Linear8bitLt):
    """LLM.int8's weights, the inputs left as they are, whatever mode the module is in."""

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return product


class ExactLinear4bit(Linear4bit):
    """nf4's weights on a CPU.

    bitsandbytes' own forward would lay the codes out anew where the processor multiplies bfloat16,
    and gradients and `dequantised` would be wrong from then on, silently.
    """

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """x · Wᵀ + b, W dequantised again for the backward pass, so that no copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: Any) -> Tensor:
        ctx.module = module
        if not _scaled_after(inputs, module):
            return nn.functional.linear(inputs, dequantised(module, inputs.dtype), module.bias)
        product = nn.functional.linear(inputs, module.state.CB.to(inputs.dtype))
        product = product.mul_(module.state.SCB / 127)
        return product if module.bias is None else product.add_(module.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        module = ctx.module
        if not _scaled_after(gradient, module):
            return gradient @ dequantised(module, gradient.dtype), None
        scaled = (gradient * (module.state.SCB / 127)).to(gradient.dtype)
        return scaled @ module.state.CB.to(gradient.dtype), None


def _scaled_after(inputs: Tensor, module: Any) -> bool:
    """Whether rows are scaled after their product, not in the weight.

    bfloat16 holds every 8-bit code and would round what it is scaled to; and outputs are fewer.
    (float16 would overflow, float32 gain nothing.)
    """
    return inputs.dtype is torch.bfloat16 and _in_8_bits(module)


def _in_8_bits(module: Any) -> bool:
    return isinstance(module, Linear8bitLt)


def _entries(module: Any) -> int:
    return int(module.in_features) * int(module.out_features)
