"""The ways to tune that are timed against each other: what is trainable, and how its loss is made.

`plain_loss` is the loss as users write it: one forward pass of the model over the batch, logits at
every position. `step_loss`, this project's, sends what all rows begin with through the model once
and applies the head only where the loss is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snt import corpora
from snt.anatomy import KINDS, Anatomy
from snt.backend import LoadedModel
from snt.deltas import Deltas, masked_slices
from snt.masks import NeuronMask
from snt.objective import Pair, Step
from snt.opening import OpenModel
from snt.retaining import kept_prompts
from snt.training import Plan, Schedule, loss_of
from snt.tuning import POSITIONS, RETAIN

MODEL, DATA = "smollm2-135m", "refusals/tune"
LEARNING_RATE = 2e-3
SHARE = 0.005

Loss = Callable[[LoadedModel, Step], Tensor]


def plain_loss(model: LoadedModel, step: Step) -> Tensor:
    """The same loss by one ordinary forward pass of the transformers model."""
    held: Any = model
    ids, real = step.batch.input_ids.to(model.device), step.batch.real.to(model.device)
    logits = held.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
    at = step.read_at.to(model.device)
    return loss_of(step, logits[at[:, 0], at[:, 1]])


@dataclass(frozen=True)
class Side:
    """One way to tune: its steps, with a loss, and the bytes held above the frozen model."""

    run: Callable[[Loss], None]
    held: Callable[[], int]
    trainable: int


def random_mask(
    anatomy: Anatomy, parameters: int, share: float = SHARE, seed: int = 0
) -> NeuronMask:
    """Random neurons, as large a share of every kind in every layer: `share` of the model."""
    weights = {kind: anatomy.size(kind) * anatomy.neuron_parameters(kind) for kind in KINDS}
    part = share * parameters / (anatomy.layers * sum(weights.values()))
    draw = torch.Generator().manual_seed(seed)
    neurons = {}
    for layer in range(anatomy.layers):
        for kind in KINDS:
            count = max(1, round(part * anatomy.size(kind)))
            chosen = torch.randperm(anatomy.size(kind), generator=draw)[:count]
            neurons[layer, kind] = chosen.sort().values.to(torch.int32)
    return NeuronMask(anatomy, neurons)


def plan_of(opened: OpenModel, steps: int) -> Plan:
    """Steps of the default tuning, from the first built-in pairs and prompts."""
    schedule = Schedule(epochs=1)
    pairs = corpora.load_pairs(DATA).pairs[: schedule.batch * steps]
    examples = [Pair(*opened.chat.pair_ids(*pair)) for pair in pairs]
    each = steps * schedule.retain_batch // len(RETAIN)
    kept = [
        kept_prompts(opened.model, opened.chat, corpora.load(name).texts[:each], POSITIONS)
        for name in RETAIN
    ]
    return Plan(examples, kept, schedule, opened.chat.pad_id)


def side_of(
    opened: OpenModel,
    plan: Plan,
    parameters: Iterable[Tensor],
    context: Callable[[], Any] = nullcontext,
    after_backward: Callable[[], None] = lambda: None,
    also: Iterable[Tensor] = (),
) -> Side:
    """The loop that all sides share. `also` are tensors held beside parameters and state."""
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    held: list[int] = [0]
    others = sum(tensor.nbytes for tensor in also)

    def run(loss: Loss) -> None:
        for tensor in trained:
            tensor.requires_grad_(True)
        with opened.model.training(), context():
            for number in range(plan.steps):
                for part in range(plan.parts):
                    loss(opened.model, plan[number * plan.parts + part]).backward()
                after_backward()
                optimizer.step()
                gradients = sum(t.grad.nbytes for t in trained if t.grad is not None)
                state = sum(
                    value.nbytes
                    for kept in optimizer.state.values()
                    for value in kept.values()
                    if isinstance(value, Tensor)
                )
                held[0] = gradients + state + others
                optimizer.zero_grad(set_to_none=True)
        for tensor in trained:
            tensor.requires_grad_(False)

    return Side(run, lambda: held[0], sum(tensor.numel() for tensor in trained))


def neurons(opened: OpenModel, plan: Plan, mask: NeuronMask) -> Side:
    """SN-Tune: deltas of the mask's slices."""
    deltas = Deltas.zeros(masked_slices(mask), opened.model)
    return side_of(
        opened,
        plan,
        deltas.parameters(),
        lambda: deltas.attached(opened.model),
        also=[*deltas.parameters(), *deltas.buffers()],
    )


def published(opened: OpenModel, plan: Plan, mask: NeuronMask) -> Side:
    """Every weight trainable, gradients outside the mask set to zero before the update.

    The masks themselves are not counted as memory: they could be applied slice by slice.
    """
    model: Any = opened.model
    places = {}
    for key, at in masked_slices(mask).items():
        weight = model.module(key.layer, key.module).weight
        inside = places.setdefault(weight, torch.zeros_like(weight, dtype=torch.bool))
        (inside if key.axis == "rows" else inside.T)[at.long()] = True
    weights = list(model.model.parameters())

    def outside_to_zero() -> None:
        for weight in weights:
            if weight.grad is None:
                continue
            if weight in places:
                weight.grad.mul_(places[weight])
            else:
                weight.grad.zero_()

    return side_of(opened, plan, weights, after_backward=outside_to_zero)


def lora_ranks(mask: NeuronMask, opened: OpenModel) -> dict[str, int]:
    """Per module of the mask the rank at which LoRA has about as many entries as the deltas."""
    entries: dict[str, float] = {}
    for key, at in masked_slices(mask).items():
        d_out, d_in = opened.model.weight_shape(key.layer, key.module)
        name = f"model.layers.{key.layer}.{key.module}"
        held = len(at) * (d_in if key.axis == "rows" else d_out)
        entries[name] = entries.get(name, 0.0) + held / (d_in + d_out)
    return {name: max(1, round(rank)) for name, rank in entries.items()}


def lora_config(mask: NeuronMask, opened: OpenModel) -> Any:
    """PEFT's LoRA on the same modules, module by module of the deltas' size, alpha as the rank."""
    from peft import LoraConfig

    ranks = lora_ranks(mask, opened)
    return LoraConfig(
        target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=dict(ranks), r=1, lora_alpha=1
    )


def lora(opened: OpenModel, plan: Plan, mask: NeuronMask) -> Side:
    """The step of `lora_config`."""
    from peft import get_peft_model

    return _adapter(opened, plan, get_peft_model, lora_config(mask, opened))


def shira(opened: OpenModel, plan: Plan, mask: NeuronMask) -> Side:
    """PEFT's SHiRA on the same modules, of the deltas' size in all: it has one rank for all."""
    from peft import ShiraConfig, get_peft_model

    ranks = lora_ranks(mask, opened)
    wanted = sum(
        len(at) * opened.model.weight_shape(key.layer, key.module)[1 if key.axis == "rows" else 0]
        for key, at in masked_slices(mask).items()
    )
    each = 0
    for name in ranks:
        _, _, layer, module = name.split(".", 3)
        each += sum(opened.model.weight_shape(int(layer), module))
    config = ShiraConfig(target_modules=list(ranks), r=max(1, round(wanted / each)))
    return _adapter(opened, plan, get_peft_model, config)


def _adapter(opened: OpenModel, plan: Plan, wrap: Any, config: Any) -> Side:
    model: Any = opened.model
    wrapped = wrap(model.model, config)
    trained = [one for one in wrapped.parameters() if one.requires_grad]
    return side_of(opened, plan, trained, also=trained)
