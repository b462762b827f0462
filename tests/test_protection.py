"""Protection: not one bit of the protected slices moves, and everything else does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import family_model
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import snt
from snt.anatomy import anatomy_of
from snt.deltas import SliceKey, masked_slices
from snt.errors import MismatchError, RequestError, RunFailure
from snt.masks import NeuronMask, save_mask

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
}


class Words(Dataset[dict[str, Tensor]]):
    """A few rows of random tokens."""

    def __init__(self, rows: int = 8) -> None:
        self.ids = torch.randint(0, 250, (rows, 12), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[item], "labels": self.ids[item]}


def mask_of(model: Any) -> NeuronMask:
    """Some neurons of every kind in both layers."""
    anatomy = anatomy_of(model.config)
    neurons = {
        (layer, kind): torch.tensor([0, 3, 5], dtype=torch.int32)
        for layer in range(anatomy.layers)
        for kind in ("ffn", "q", "k", "v")
    }
    return NeuronMask(anatomy, neurons)


def slices(model: Any, mask: NeuronMask) -> dict[SliceKey, Tensor]:
    """The protected slices of the base weights, and biases of rows, as they are now."""
    found = {}
    for key, indices in masked_slices(mask).items():
        name = f"{mask.anatomy.family.layers}.{key.layer}.{key.module}"
        module = model.get_submodule(name)
        module = getattr(module, "base_layer", module)
        values = module.weight.detach().index_select(int(key.axis == "cols"), indices.long())
        if key.axis == "rows" and module.bias is not None:
            values = torch.cat([values, module.bias.detach()[indices.long(), None]], dim=1)
        found[key] = values.clone()
    return found


def same(first: dict[SliceKey, Tensor], second: dict[SliceKey, Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


def trainer(model: Any, folder: Path, *callbacks: TrainerCallback, **more: Any) -> Trainer:
    given = {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2, **more}
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **given,
        ),
        train_dataset=Words(),
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_trainer_leaves_every_protected_bit(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = family_model(family).to(dtype).requires_grad_(True)
    mask = mask_of(model)
    before = slices(model, mask)
    others = {name: value.detach().clone() for name, value in model.named_parameters()}
    save_mask(mask, tmp_path / "mask.safetensors")
    protection = snt.protect(model, tmp_path / "mask.safetensors")
    trainer(model, tmp_path, protection).train()
    assert same(before, slices(model, mask)) and protection.changed() == 0
    assert all(not torch.equal(others[n], p) for n, p in model.named_parameters() if p.dim() == 2)
    held = sum(value.numel() for value in before.values())
    assert protection.entries == held and protection.held_bytes == held * dtype.itemsize


def test_without_protection_they_move(tmp_path: Path) -> None:
    model = family_model("llama").requires_grad_(True)
    mask = mask_of(model)
    before = slices(model, mask)
    trainer(model, tmp_path).train()
    assert not same(before, slices(model, mask))


def test_a_trainer_with_sgd_and_momentum(tmp_path: Path) -> None:
    model = family_model("llama").requires_grad_(True)
    mask = mask_of(model)
    before = slices(model, mask)
    more = {"optim": "sgd", "optim_args": "momentum=0.9"}
    trainer(model, tmp_path, snt.protect(model, mask), **more).train()
    assert same(before, slices(model, mask))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_loop_with_old_momentum(name: str) -> None:
    model = family_model("llama").requires_grad_(True)
    mask = mask_of(model)
    optimizer = OPTIMIZERS[name](model.parameters())

    def steps(count: int) -> None:
        for _ in range(count):
            for rows in Words().ids.split(4):  # two parts to a step
                model(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(2)  # momentum of the protected slices from before
    before = slices(model, mask)
    with snt.protect(model, mask) as protection:
        steps(3)
        assert same(before, slices(model, mask))
    assert protection.changed() == 0
    steps(1)
    assert not same(before, slices(model, mask))  # released


def test_protected_gradients_do_not_count_in_the_norm() -> None:
    model = family_model("llama").requires_grad_(True)
    mask = mask_of(model)
    rows = Words().ids
    with snt.protect(model, mask):
        model(input_ids=rows, labels=rows).loss.backward()
    for key, indices in masked_slices(mask).items():
        grad = model.get_submodule(f"model.layers.{key.layer}.{key.module}").weight.grad
        at = indices.long()
        assert not grad.index_select(int(key.axis == "cols"), at).any() and grad.any()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_changes_no_protected_row_or_column(
    when: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = family_model("llama").to(dtype)
    mask = mask_of(model)
    before = slices(model, mask)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(EVERY), lora_bias=True)
    protection = None if when == "after" else snt.protect(model, mask)
    tuned = get_peft_model(model, config)
    protection = protection or snt.protect(tuned, mask)
    trainer(tuned, tmp_path, protection).train()
    assert protection.changed() == 0
    moved = 0
    for key, indices in masked_slices(mask).items():
        module = model.get_submodule(f"model.layers.{key.layer}.{key.module}")
        update = module.get_delta_weight("default")
        axis = int(key.axis == "cols")
        assert not update.index_select(axis, indices.long()).any()
        moved += int(update.any())
    assert moved == len(masked_slices(mask))
    merged = tuned.merge_and_unload()
    assert same(before, slices(merged, mask))


def test_lora_beside_fused_weights(tmp_path: Path) -> None:
    model = family_model("phi3")
    mask = mask_of(model)
    before = slices(model, mask)
    targets = ["qkv_proj", "gate_up_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    trainer(tuned, tmp_path, snt.protect(tuned, mask)).train()
    assert same(before, slices(tuned.merge_and_unload(), mask))


def test_what_cannot_be_protected_is_refused() -> None:
    model = family_model("llama")
    mask = mask_of(model)
    with pytest.raises(MismatchError, match="another model"):
        snt.protect(family_model("llama", intermediate_size=14), mask)
    with pytest.raises(RequestError, match="no neuron"):
        snt.protect(model, NeuronMask(mask.anatomy, {}))
    with pytest.raises(RequestError, match="no transformers model"):
        snt.protect(torch.nn.Linear(2, 2), mask)
    mixture = family_model("mixtral")
    with pytest.raises(RequestError, match="experts"):
        snt.protect(mixture, mask_of(mixture))
    dora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(RequestError, match="variant"):
        snt.protect(get_peft_model(family_model("llama"), dora), mask)
    used = get_peft_model(
        family_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    with pytest.raises(RequestError, match="merge it first"):
        snt.protect(used, mask)


def test_a_write_behind_its_back_is_found() -> None:
    model = family_model("llama").requires_grad_(True)
    with (
        pytest.raises(RunFailure, match="protected entries changed"),
        snt.protect(model, mask_of(model)),
        torch.no_grad(),
    ):
        model.model.layers[0].self_attn.q_proj.weight.add_(1.0)


def test_weights_that_were_replaced_or_sharded_are_found() -> None:
    model = family_model("llama").requires_grad_(True)
    protection = snt.protect(model, mask_of(model))
    layer = model.model.layers[0].self_attn
    whole = layer.q_proj.weight
    layer.q_proj.weight = torch.nn.Parameter(whole.detach().clone())
    with pytest.raises(RequestError, match="replaced"), protection:
        pass
    layer.q_proj.weight = torch.nn.Parameter(whole.detach()[:2].flatten())
    with pytest.raises(RequestError, match="sharded"), protection:
        pass
    layer.q_proj.weight = whole
    with protection:
        pass
