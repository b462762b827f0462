"""Protection: a mask's neurons keep every bit of their weights while everything else is trained.

For anybody's training loop: transformers' Trainer, TRL, PEFT, or a plain loop with a torch
optimizer. Source of the idea: RSN-Tune, Zhao et al., ICLR 2025, which keeps safety neurons apart
from what a later fine-tune changes.

A gradient of zero does not hold a weight still: weight decay shrinks it and momentum of earlier
steps carries it on. So the protected slices are put back after every step of the optimizer, and
their gradients are zeroed as well, so that they count neither in the clipping of the norm nor in
the optimizer's averages. What is kept for that are the slices alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from snt.anatomy import anatomy_of
from snt.deltas import SliceKey, masked_slices
from snt.errors import MismatchError, RequestError, RunFailure
from snt.held_slices import HeldSlice
from snt.masks import NeuronMask, load_mask


def protect(model: Any, mask: NeuronMask | Path | str) -> Protection:
    """Protect the neurons of `mask` in `model` from whatever trains it next.

    `model` is a transformers model, or a PEFT model around one; LoRA may also be added afterwards.
    Either give what is returned to a Trainer, `Trainer(..., callbacks=[snt.protect(model, mask)])`,
    or train within it: `with snt.protect(model, mask): ...`. Weights are held as they are now.
    Under LoRA, the update's part for the protected rows and columns is zero.

    Raises MismatchError for a mask of another model, RequestError for neurons in experts, weights
    that are sharded, and adapters that are not LoRA.
    """
    held = mask if isinstance(mask, NeuronMask) else load_mask(Path(mask))
    return Protection(model, held)


class Protection(TrainerCallback):
    """Holds slices of a model's weights while it is trained; see `protect`.

    A callback for Trainers, and a context for plain loops. Within the context every torch optimizer
    of this process is watched, however it is wrapped.
    """

    def __init__(self, model: Any, mask: NeuronMask) -> None:
        """Raises as `protect` does."""
        self._model = plain_model(model)
        self._mask = mask
        _check(self._model, mask)
        self._slices = masked_slices(mask)
        self._weights = [
            HeldSlice.of(key, parameter, axis, self._slices[key].long())
            for key in self._slices
            for parameter, axis in self._held(key)
        ]
        self._adapters: list[HeldSlice] = []
        self._handles: list[Any] = []
        self._adapters = list(self._adapter_slices())

    @property
    def entries(self) -> int:
        """Entries of the base weights (biases of their rows included) that are held."""
        return sum(part.values.numel() for part in self._weights)

    @property
    def held_bytes(self) -> int:
        """Memory that the kept values take."""
        parts = [*self._weights, *self._adapters]
        return sum(part.values.numel() * part.values.element_size() for part in parts)

    def restore(self) -> None:
        """Put the kept values back; to be called after a step that nothing here can see."""
        for part in (*self._weights, *self._adapters):
            part.restore()

    def changed(self) -> int:
        """Protected entries, of weights and of LoRA factors, that are not what they must be."""
        return sum(part.changed() for part in (*self._weights, *self._adapters))

    def weights_changed(self) -> int:
        """The same of the base weights alone, such as after LoRA was merged into them."""
        return sum(part.changed() for part in self._weights)

    def check(self) -> None:
        """Raises RunFailure when a protected entry has changed."""
        changed = self.changed()
        if changed:
            raise RunFailure(
                f"{changed} protected entries changed during the training: something wrote weights "
                "other than by an optimizer's step; call restore() after it"
            )

    def __enter__(self) -> Self:
        self._begin()
        self._handles.append(register_optimizer_step_post_hook(self._after_step))
        return self

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Some optimizer of this process has taken a step."""
        self.restore()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if error is None:
            self.check()

    def close(self) -> None:
        """Stop watching. A Trainer does it at the end of its training."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adapters may have been added, and a checkpoint loaded, since this was made."""
        self._begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After every step of the optimizer, whatever optimizer it is."""
        self.restore()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching and prove that nothing protected has changed."""
        self.close()
        self.check()

    def _begin(self) -> None:
        self.close()
        self._adapters = list(self._adapter_slices())
        now = [parameter for key in self._slices for parameter, _ in self._held(key)]
        if list(map(id, now)) != [id(part.parameter) for part in self._weights]:
            raise RequestError(
                "weights were replaced by others since the model was protected; protect it again, "
                "after what replaced them"
            )
        self.restore()
        for part in (*self._weights, *self._adapters):
            if part.parameter.requires_grad:
                parameter: Any = part.parameter  # torch does not say what the hook takes
                self._handles.append(parameter.register_post_accumulate_grad_hook(part.still))

    def _module(self, key: SliceKey) -> nn.Module:
        name = f"{self._mask.anatomy.family.layers}.{key.layer}.{key.module}"
        try:
            found: nn.Module = self._model.get_submodule(name)
        except AttributeError as error:
            raise RequestError(
                f"{type(self._model).__name__} has no {name}: give the transformers model itself, "
                "not what wraps it"
            ) from error
        return found

    def _held(self, key: SliceKey) -> Iterator[tuple[nn.Parameter, int]]:
        """The parameters, and their axes, that hold a slice of the base weights."""
        module = self._module(key)
        base = getattr(module, "base_layer", module)
        weight = getattr(base, "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise RequestError(
                f"{key}: {type(base).__name__} has no weight of its own that could be protected"
            )
        # Quantised weights are whole numbers: no optimizer changes them, an adapter beside may.
        if not weight.is_floating_point():
            return
        shape = self._mask.anatomy.weight_shapes()[key.module]
        if tuple(weight.shape) != shape or hasattr(weight, "placements"):
            raise RequestError(
                f"{key}: the weight is {tuple(weight.shape)} here and {shape} in the model; one "
                "that is sharded over processes cannot be protected: train it with LoRA or DDP"
            )
        yield weight, 0 if key.axis == "rows" else 1
        bias = getattr(base, "bias", None)
        if key.axis == "rows" and isinstance(bias, nn.Parameter):
            yield bias, 0

    def _adapter_slices(self) -> Iterator[HeldSlice]:
        """The zeros of LoRA factors: rows of B for rows, columns of A for columns."""
        peft: Any = sys.modules.get("peft")
        if peft is None:  # nothing that is not imported can have been added
            return
        from peft.tuners.lora import LoraLayer
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        for key, indices in self._slices.items():
            module = self._module(key)
            if isinstance(module, AuxiliaryTrainingWrapper) or (
                isinstance(module, BaseTunerLayer) and not isinstance(module, LoraLayer)
            ):
                raise RequestError(
                    f"{key} is trained by PEFT's {type(module).__name__}; protection knows full "
                    "fine-tuning and LoRA: use one of them, or leave that module out"
                )
            if isinstance(module, LoraLayer):
                for adapter in module.lora_B:
                    yield from _zeros(key, module, adapter, indices.long())


def _zeros(key: SliceKey, module: Any, adapter: str, indices: Tensor) -> Iterator[HeldSlice]:
    """Slices of one LoRA adapter that must be zero, made so where that changes nothing."""
    if getattr(module, "lora_variant", {}).get(adapter) is not None:
        raise RequestError(
            f"{key}: the adapter {adapter!r} is a variant of LoRA "
            f"({type(module.lora_variant[adapter]).__name__}), whose update does not stay within "
            "the rows and columns that are trained; use plain LoRA"
        )
    first, second = module.lora_A[adapter], module.lora_B[adapter]
    if key.axis == "rows":
        parts = [(second.weight, 0)] + ([] if second.bias is None else [(second.bias, 0)])
        free = True
    else:
        parts, free = [(first.weight, 1)], not bool(second.weight.detach().any())
    for parameter, axis in parts:
        made = HeldSlice.of(key, parameter, axis, indices)
        if bool(made.values.any()) and not (free and key.axis == "cols"):
            raise RequestError(
                f"{key}: the adapter {adapter!r} changes protected neurons already; merge it first "
                "(merge_and_unload), or begin with an adapter that starts at zero"
            )
        zeros = HeldSlice(key, parameter, axis, made.indices, torch.zeros_like(made.values))
        zeros.restore()
        yield zeros


def plain_model(model: Any) -> Any:
    """The transformers model within what wraps it: torch.compile, data parallel, PEFT."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return plain_model(inner)
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def _check(model: Any, mask: NeuronMask) -> None:
    config = getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        raise RequestError(
            f"{type(model).__name__} is no transformers model; give the model that is trained"
        )
    anatomy = anatomy_of(config)
    if anatomy != mask.anatomy:
        raise MismatchError(
            f"the mask is for another model ({mask.anatomy.shape()}) than this one "
            f"({anatomy.shape()}); detect on this model"
        )
    experts = mask.count("ffn") if anatomy.family.experts is not None else 0
    if experts:
        raise RequestError(
            f"the mask holds {experts} ffn neurons in experts, which cannot be protected; detect "
            "with --kinds q,k,v"
        )
    if not len(mask):
        raise RequestError("the mask holds no neuron; there is nothing to protect")
