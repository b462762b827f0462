"""A module with a delta beside its weight against the same module with the delta in its weight."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from snt.delta_products import attach

AT = torch.tensor([0, 3, 4])


class Other(nn.Linear):
    """Stands for a module that holds its weight in a way of its own."""


def _module(kind: type[nn.Linear], bias: bool = True) -> nn.Linear:
    torch.manual_seed(1)
    return kind(7, 6, bias=bias).double().requires_grad_(False)


def _delta(axis: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randn((3, 7) if axis == "rows" else (6, 3), dtype=torch.float64)


def _by_hand(module: nn.Linear, axis: str, x: Tensor, delta: Tensor) -> Tensor:
    weight = module.weight.clone()
    change = torch.zeros_like(weight).index_add(0 if axis == "rows" else 1, AT, delta)
    return nn.functional.linear(x, weight + change, module.bias)


@pytest.mark.parametrize("kind", [nn.Linear, Other])
@pytest.mark.parametrize("axis", ["rows", "cols"])
@pytest.mark.parametrize("shape", [(5, 7), (2, 4, 7)])
def test_values_and_gradients_are_those_of_the_changed_weight(
    kind: Any, axis: Literal["rows", "cols"], shape: Any
) -> None:
    module = _module(kind)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    delta = _delta(axis).requires_grad_(True)
    weigh = torch.randn((*shape[:-1], 6), dtype=torch.float64)
    expected = torch.autograd.grad((_by_hand(module, axis, x, delta) * weigh).sum(), [x, delta])
    # Deltas are float32 beside any weight; here float64 throughout, so that little is forgiven.
    detach = attach(module, axis, AT, lambda: delta)
    output = module(x)
    found = torch.autograd.grad((output * weigh).sum(), [x, delta])
    detach()
    torch.testing.assert_close(output, _by_hand(module, axis, x, delta))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)
    assert "forward" not in vars(module) and not module._forward_hooks
    assert torch.equal(module(x), _by_hand(module, axis, x, 0 * delta))


@pytest.mark.parametrize("axis", ["rows", "cols"])
def test_switched_off_it_is_the_module_itself(axis: Literal["rows", "cols"]) -> None:
    module, x = _module(nn.Linear, bias=False), torch.randn(3, 7, dtype=torch.float64)
    before = module(x)
    attach(module, axis, AT, lambda: None)
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("axis", ["rows", "cols"])
def test_a_weight_that_is_trained_too_gets_its_gradient(axis: Literal["rows", "cols"]) -> None:
    module, delta = _module(nn.Linear).requires_grad_(True), _delta(axis).requires_grad_(True)
    x = torch.randn(5, 7, dtype=torch.float64)
    attach(module, axis, AT, lambda: delta)
    output = module(x)
    output.square().sum().backward()
    expected = 2 * output.detach().mT @ x
    assert module.weight.grad is not None and delta.grad is not None
    torch.testing.assert_close(module.weight.grad, expected)
    inside = expected[AT] if axis == "rows" else expected[:, AT]
    torch.testing.assert_close(delta.grad, inside)


def test_two_deltas_on_one_module_add_up() -> None:
    module, x = _module(nn.Linear), torch.randn(3, 7, dtype=torch.float64)
    rows, columns = _delta("rows"), _delta("cols")
    expected = _by_hand(module, "rows", x, rows) + _by_hand(module, "cols", x, columns) - module(x)
    undo = [
        attach(module, "rows", AT, lambda: rows),
        attach(module, "cols", AT, lambda: columns),
    ]
    torch.testing.assert_close(module(x), expected)
    for one in reversed(undo):
        one()
    assert "forward" not in vars(module) and not module._forward_hooks


def test_nothing_below_is_asked_for_a_gradient() -> None:
    module, x, delta = _module(nn.Linear), torch.randn(3, 7, dtype=torch.float64), _delta("cols")
    delta.requires_grad_(True)
    attach(module, "cols", AT, lambda: delta)
    module(x).sum().backward()
    assert delta.grad is not None and x.grad is None


@pytest.mark.parametrize("axis", ["rows", "cols"])
def test_a_half_precision_base_has_float32_gradients(axis: Literal["rows", "cols"]) -> None:
    module = _module(nn.Linear).bfloat16()
    x, delta = torch.randn(9, 7).bfloat16(), _delta(axis).float().requires_grad_(True)
    attach(module, axis, AT, lambda: delta)
    output = module(x)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert delta.grad is not None and delta.grad.dtype == torch.float32
    exact = _by_hand(module.float(), axis, x.float(), delta)
    torch.testing.assert_close(output.float(), exact, rtol=0.03, atol=0.03)
