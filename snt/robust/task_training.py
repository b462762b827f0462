"""The fine-tune on the task: transformers' Trainer over the whole model, or over LoRA beside it.

Weights are float32, whatever precision the products have: an update at a usual learning rate is
below the resolution of bfloat16 weights and would be rounded away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from snt.backend import Batch, LoadedModel
from snt.chat import Chat
from snt.deltas import SliceKey
from snt.errors import RequestError, RunFailure
from snt.masks import NeuronMask
from snt.memory import release
from snt.objective import Pair, right_padded
from snt.protection import Protection, protect
from snt.rehearsal import Rehearsal
from snt.rehearsal_steps import Material
from snt.robust.settings import TaskSchedule, Via
from snt.robust.task_data import TaskItem

_RELEASE_STEPS = 10


@dataclass(frozen=True)
class FineTune:
    """What a fine-tune did: steps, the loss of each (nats a token), rows cut or left out.

    `protected` entries were held, `protected_changed` of them differ afterwards (bits compared)
    from what they were, or from what `rehearsed` steps of SN-Tune made of them.
    """

    steps: int
    losses: tuple[float, ...]
    cut: int
    protected: int = 0
    protected_changed: int = 0
    rehearsed: int = 0

    def as_json(self) -> dict[str, Any]:
        """As it stands in the report of a stage; the losses by their first and last tenth."""
        part = max(1, len(self.losses) // 10)
        return {
            "steps": self.steps,
            "loss_first": sum(self.losses[:part]) / part,
            "loss_last": sum(self.losses[-part:]) / part,
            "cut": self.cut,
            "protected": self.protected,
            "protected_changed": self.protected_changed,
            "rehearsed": self.rehearsed,
        }


def whole_model(loaded: LoadedModel, backend: str) -> nn.Module:
    """The transformers model that a backend holds. Raises RequestError when it holds none whole."""
    found = getattr(loaded, "model", None)
    if not isinstance(found, nn.Module) or loaded.dtype != torch.float32:
        raise RequestError(
            f"backend {backend!r} holds no whole model in float32, which a fine-tune of it needs; "
            "give --backend full"
        )
    return found


def merge_deltas(loaded: LoadedModel, slices: Mapping[SliceKey, tuple[Tensor, Tensor]]) -> None:
    """Add a patch's deltas to the weights in memory: rows (n, d_in), columns (d_out, n)."""
    with torch.no_grad():
        for key, (indices, delta) in slices.items():
            weight = loaded.module(key.layer, key.module).get_parameter("weight")
            at, values = indices.long().to(weight.device), delta.to(weight.device, weight.dtype)
            weight.index_add_(0 if key.axis == "rows" else 1, at, values)


def as_measured(model: nn.Module, dtype: str) -> None:
    """Turn the weights to the precision that models are measured in.

    Parameters alone: the frequencies of rotary positions are buffers, which transformers leaves in
    float32 when it loads a model in bfloat16, and rounded ones would turn other angles.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def examples_of(chat: Chat, items: Sequence[TaskItem], longest: int) -> tuple[list[Pair], int]:
    """Tokens of prompts and responses, cut to `longest`, and how many were cut.

    A prompt that leaves no room for a response is left out. Raises RequestError when all are.
    """
    pairs, cut = [], 0
    longest = min(longest, chat.context or longest)
    for item in items:
        before = chat.prompt_ids(item.prompt)
        ids = before + chat.response_ids(item.response) + list(chat.end_of_turn)
        cut += len(ids) > longest
        if len(before) < longest:
            pairs.append(Pair(ids[:longest], len(before)))
    if not pairs:
        raise RequestError(
            f"every prompt of the task takes {longest} tokens or more; raise --task-longest"
        )
    return pairs, cut


def fine_tune(
    loaded: LoadedModel,
    backend: str,
    chat: Chat,
    items: Sequence[TaskItem],
    schedule: TaskSchedule,
    via: Via,
    seed: int,
    protected: NeuronMask | None = None,
    rehearsed: Material | None = None,
    half: bool = False,
    on_step: Callable[[], None] | None = None,
) -> FineTune:
    """Fine-tune `loaded`, held in float32, in place; LoRA is merged into it at the end.

    `protected` neurons keep every bit, but for what is `rehearsed` on them. `half` computes
    products in bfloat16. Raises RequestError for a backend that holds no whole model, RunFailure
    for a loss that is not finite.
    """
    model: Any = whole_model(loaded, backend)
    pairs, cut = examples_of(chat, items, schedule.longest)
    torch.manual_seed(seed)  # the factors of LoRA are drawn
    adapted: Any = None
    if via == "lora":
        adapted = _with_lora(model, schedule.rank)
    else:
        model.requires_grad_(True)
    protection: Protection | None = None
    if protected is not None and rehearsed is not None:
        protection = Rehearsal(adapted or model, protected, lambda: rehearsed)
    elif protected is not None:
        protection = protect(adapted or model, protected)
    module = _Loss(loaded, model, chat.pad_id)
    watcher = _Steps(module, on_step)
    at_once = min(schedule.rows_at_once, schedule.batch)
    parts = -(-schedule.batch // at_once)
    steps = schedule.steps(len(pairs))
    with TemporaryDirectory() as folder, loaded.training():
        trainer = Trainer(
            model=module,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=parts,
                max_steps=steps,
                learning_rate=schedule.rate(via),
                lr_scheduler_type="linear",
                warmup_steps=round(schedule.warmup * steps),
                weight_decay=schedule.weight_decay,
                optim="adamw_torch",
                max_grad_norm=1.0,
                bf16=half,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                seed=seed,
                use_cpu=loaded.device.type == "cpu",
                dataloader_pin_memory=False,
            ),
            train_dataset=_Examples(pairs),
            data_collator=_listed,
            callbacks=[watcher, *([] if protection is None else [protection])],
        )
        trainer.remove_callback(_printer())
        trainer.train()
        del trainer
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    if adapted is not None:
        adapted.merge_and_unload()
    model.eval()
    return FineTune(
        len(watcher.losses),
        tuple(watcher.losses),
        cut,
        *(() if protection is None else _proof(protection)),
    )


def _proof(protection: Protection) -> tuple[int, int, int]:
    steps = len(protection.losses) if isinstance(protection, Rehearsal) else 0
    return protection.entries, protection.weights_changed(), steps


def _with_lora(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


class _Loss(nn.Module):
    """Cross-entropy of the responses; logits are made where the loss is, and nowhere else."""

    def __init__(self, loaded: LoadedModel, model: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.losses: list[float] = []
        self._loaded = (loaded,)  # in a tuple: the model is registered once

    def forward(self, pairs: list[Pair]) -> dict[str, Tensor]:
        (loaded,) = self._loaded
        device = loaded.device
        batch = right_padded([pair.ids for pair in pairs], self.pad_id)
        where = [(r, p) for r, pair in enumerate(pairs) for p in _predicting(pair)]
        at = torch.tensor(where, device=device)
        targets = torch.tensor([t for pair in pairs for t in pair.ids[pair.start :]], device=device)
        hidden = loaded.hidden(Batch(batch.input_ids.to(device), batch.real.to(device)))
        logits = loaded.logits(hidden[at[:, 0], at[:, 1]])
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        if not bool(torch.isfinite(loss)):
            raise RunFailure("the loss of the task is not finite; lower --task-lr")
        self.losses.append(float(loss.detach()))
        return {"loss": loss}


class _Examples(Dataset[Pair]):
    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int) -> Pair:
        return self.pairs[item]


class _Steps(TrainerCallback):
    def __init__(self, module: _Loss, on_step: Callable[[], None] | None) -> None:
        self.module, self.on_step = module, on_step
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last step of an epoch may have fewer parts than others.
        parts, self.module.losses = self.module.losses, []
        self.losses.append(sum(parts) / len(parts))
        if state.global_step % _RELEASE_STEPS == 0:
            release()
        if self.on_step is not None:
            self.on_step()


def _predicting(pair: Pair) -> range:
    """Positions whose next token is one of the response."""
    return range(pair.start - 1, len(pair.ids) - 1)


def _listed(items: list[Pair]) -> dict[str, list[Pair]]:
    return {"pairs": items}


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
