"""What a module computes with a delta beside its weight, forward and backward.

y = x·Wᵀ and y[..., rows] += x·ΔWᵀ, or y += x[..., cols]·ΔWᵀ. Products are made in the precision of
x, as those with W are; the delta itself, its gradient and its optimizer state stay float32.

The frozen weight's gradient is never formed. For a plain nn.Linear both products are one autograd
function, so that the gradient of x is written once: adding up two of them, one of which is zero
outside a few columns, cost as much as a quarter of the layer. index_copy rather than index_add,
which on a CPU takes 40 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from snt.anatomy import Axis

Current = Callable[[], Tensor | None]


def attach(module: nn.Module, axis: Axis, at: Tensor, current: Current) -> Callable[[], None]:
    """Have `module` compute with the delta that `current` returns; returns what undoes that.

    at: (n,) int64 rows or columns. `current` gives the float32 delta, rows (n, d_in) or columns
    (d_out, n), or None while it is switched off.
    """
    add = _add_rows if axis == "rows" else _add_columns
    if type(module) is nn.Linear and "forward" not in vars(module):
        function = _RowsInside if axis == "rows" else _ColumnsInside

        def forward(x: Tensor) -> Tensor:
            delta, weight, bias = current(), module.weight, module.bias
            if delta is None:
                return nn.functional.linear(x, weight, bias)
            trained = weight.requires_grad or (bias is not None and bias.requires_grad)
            if trained or torch.is_autocast_enabled(x.device.type):
                # Somebody trains the weight too, and wants the gradient that is left out below;
                # or autocast chooses the precision, and of the products below only of some.
                return add(x, nn.functional.linear(x, weight, bias), delta, at)
            output: Tensor = function.apply(x, delta, at, weight, bias)  # type: ignore[no-untyped-call]
            return output

        # On the instance, where it hides the class's; hooks of others are called around it.
        module.forward = forward  # type: ignore[method-assign, assignment]
        return lambda: delattr(module, "forward")

    # Any other way to hold a weight (8-bit, offloaded, patched already) does its own product.
    def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        delta = current()
        return output if delta is None else add(inputs[0], output, delta, at)

    return module.register_forward_hook(hook).remove


def _add_rows(x: Tensor, y: Tensor, delta: Tensor, at: Tensor) -> Tensor:
    change = x @ delta.to(x.dtype).mT
    return y.index_copy(-1, at, y.index_select(-1, at) + change.to(y.dtype))


def _add_columns(x: Tensor, y: Tensor, delta: Tensor, at: Tensor) -> Tensor:
    return y + (x.index_select(-1, at) @ delta.to(x.dtype).mT).to(y.dtype)


class _RowsInside(torch.autograd.Function):
    """x (..., d_in), delta (n, d_in), at (n,), weight (d_out, d_in), bias -> y (..., d_out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, at: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        small = delta.to(x.dtype)
        ctx.save_for_backward(x, small, at, weight)
        y = nn.functional.linear(x, weight, bias)
        return y.index_copy_(-1, at, y.index_select(-1, at) + x @ small.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, small, at, weight = ctx.saved_tensors
        flat = dy.reshape(-1, dy.shape[-1])
        chosen = flat.index_select(1, at)
        d_delta = chosen.mT @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (flat @ weight).addmm_(chosen, small).view(x.shape)
        return dx, None if d_delta is None else d_delta.float(), None, None, None


class _ColumnsInside(torch.autograd.Function):
    """x (..., d_in), delta (d_out, n), at (n,), weight (d_out, d_in), bias -> y (..., d_out)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, at: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        small = delta.to(x.dtype)
        read = x.reshape(-1, x.shape[-1]).index_select(1, at)
        ctx.save_for_backward(read, small, at, weight)
        y = nn.functional.linear(x, weight, bias)
        y.view(-1, y.shape[-1]).addmm_(read, small.mT)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        read, small, at, weight = ctx.saved_tensors
        flat = dy.reshape(-1, dy.shape[-1])
        d_delta = flat.mT @ read if ctx.needs_input_grad[1] else None
        dx = None
        if ctx.needs_input_grad[0]:
            dx = flat @ weight
            dx.index_copy_(1, at, dx.index_select(1, at) + flat @ small)
            dx = dx.view(*dy.shape[:-1], -1)
        return dx, None if d_delta is None else d_delta.float(), None, None, None
