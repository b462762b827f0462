"""Models that judge: opened by Hub id or directory like any other, an adapter merged in memory.

What a judge asks of its model is here; what it asks about a reply stands in the judge's own file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snt.errors import RequestError, SntError, UnavailableError
from snt.evaluation.judges import JudgeChoice
from snt.preflight import Work

if TYPE_CHECKING:
    from torch import Tensor

    from snt.opening import OpenModel

BATCH: Final = 16
# Responses are cut to this many of the judge's tokens, as HarmBench and StrongREJECT do.
RESPONSE_TOKENS: Final = 512
_LORA: Final = re.compile(r"\.layers\.(?P<layer>\d+)\.(?P<module>.+)\.lora_A\.weight$")
_WORK: Final = Work(("generate", "score"))
# What would make an adapter more than ΔW = (alpha / r) B A on each of its modules.
_MORE: Final = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern")


def open_judge_model(judge: str, default: str, choice: JudgeChoice) -> OpenModel:
    """The model that the choice's setting names, else `default`; a LoRA adapter is merged in.

    Raises UnavailableError that says what the judge needs when the model cannot be had.
    """
    from snt.opening import ModelChoice, open_model

    ref = choice.setting or default
    try:
        adapter = _adapter_directory(ref, choice.offline)
        if adapter is None:
            return open_model(ModelChoice(ref, offline=choice.offline), work=_WORK)
        config = _adapter_config(adapter)
        opened = open_model(
            ModelChoice(str(config["base_model_name_or_path"]), offline=choice.offline), work=_WORK
        )
        _merge(opened, adapter, config)
        return opened
    except SntError as error:
        if isinstance(error, UnavailableError) or not isinstance(error, RequestError):
            raise
        raise UnavailableError(
            f"judge {judge!r} needs the model {ref}, which cannot be had: {error}; "
            f"a copy on disk is given as --judge {judge}:DIR"
        ) from error


def cut(opened: OpenModel, response: str, tokens: int = RESPONSE_TOKENS) -> str:
    """`response` cut to so many of the judge's own tokens; a shorter one comes back as it is."""
    tokenizer = opened.model.tokenizer
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    if len(ids) <= tokens:
        return response
    text: str = tokenizer.decode(ids[:tokens], skip_special_tokens=True)
    return text


def answers(
    opened: OpenModel, texts: Sequence[str], new_tokens: int, special: bool = True
) -> list[str]:
    """Greedy continuations of prompts given as final text, in order, special tokens left out.

    `special` lets the tokenizer add its own tokens, as it must where the text has none.
    """
    from snt.generation import left_padded_batches

    model, chat = opened.model, opened.chat
    rows = _tokens(opened, texts, special, new_tokens)
    found: dict[int, str] = {}
    for numbers, batch in left_padded_batches(rows, chat.pad_id, BATCH):
        new = model.generate(batch, new_tokens, chat.stop_ids)
        for row, number in zip(new.tolist(), numbers, strict=True):
            end = next((i for i, token in enumerate(row) if token in chat.stop_ids), len(row))
            found[number] = model.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
    return [found[number] for number in range(len(texts))]


def last_logits(opened: OpenModel, texts: Sequence[str], token_ids: Sequence[int]) -> Tensor:
    """Logits (rows, len(token_ids)) of some tokens after each of the texts, float32, on the CPU."""
    import torch

    from snt.objective import right_padded

    model = opened.model
    rows = _tokens(opened, texts, True, 0)
    parts = []
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        with torch.inference_mode():
            hidden = model.hidden(right_padded(chosen, opened.chat.pad_id))
            ends = torch.tensor([len(row) - 1 for row in chosen], device=hidden.device)
            at = hidden[torch.arange(len(chosen), device=hidden.device), ends]
            parts.append(model.logits(at)[:, list(token_ids)].float().cpu())
    return torch.cat(parts)


def no_verdict(
    judge: str, opened: OpenModel, number: int, answer: str, wanted: str
) -> RequestError:
    """The error for a model that does not answer as the judge's model would."""
    return UnavailableError(
        f"judge {judge!r}, reply {number}: {opened.id} answered {answer[:60]!r} and not {wanted}; "
        f"that is another model than the judge's: give the right one as --judge {judge}:DIR"
    )


def _tokens(opened: OpenModel, texts: Sequence[str], special: bool, room: int) -> list[list[int]]:
    tokenizer, context = opened.model.tokenizer, opened.model.context
    rows = [list(tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]
    for number, row in enumerate(rows, start=1):
        if context is not None and len(row) + room > context:
            raise RequestError(
                f"reply {number} with the judge's instructions takes {len(row)} tokens and the "
                f"context of {opened.id} holds {context}; judge shorter prompts, or with another "
                "judge"
            )
    return rows


def _adapter_directory(ref: str, offline: bool) -> Path | None:
    """The directory of a PEFT adapter, local or from the Hub; None when `ref` names a model."""
    from snt import hub_models

    local = Path(ref).expanduser()
    if local.is_dir():
        return local if _is_adapter(local) else None
    if ref != ADAPTER_ID:
        return None
    if offline or hub_models.forbidden():
        directory = hub_models.cached(ref, None)
    else:
        directory = hub_models.download(ref, None, bars=False)
    if directory is None:
        raise RequestError(
            f"{ref} is not in the Hugging Face cache, and the Hub may not be asked; run once "
            "without --offline and HF_HUB_OFFLINE."
        )
    return directory if _is_adapter(directory) else None


# The one judge that is published as an adapter.
ADAPTER_ID: Final = "qylu4156/strongreject-15k-v1"


def _is_adapter(directory: Path) -> bool:
    made = (directory / "config.json").is_file()
    return not made and (directory / "adapter_config.json").is_file()


def _adapter_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "adapter_config.json").read_text("utf-8"))
        plain = {"base_model_name_or_path", "r", "lora_alpha"} <= config.keys()
    except (ValueError, AttributeError, OSError) as error:
        raise RequestError(
            f"{directory.name}/adapter_config.json cannot be read ({error})."
        ) from None
    odd = [key for key in _MORE if config.get(key)]
    if not plain or odd or config.get("peft_type", "LORA") != "LORA":
        what = ", ".join(odd) or "no plain LoRA"
        raise RequestError(
            f"the adapter {directory.name} has {what}; merge it into its base model and give that "
            "directory."
        )
    return dict(config)


def _merge(opened: OpenModel, directory: Path, config: dict[str, Any]) -> None:
    """Add (alpha / r) B A to every module of the adapter, in memory (Hu et al. 2021, eq. 3)."""
    import torch
    from safetensors.torch import load_file

    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise RequestError(f"the adapter {directory.name} has no adapter_model.safetensors.")
    weights = load_file(path)
    scale = float(config["lora_alpha"]) / float(config["r"])
    pairs = 0
    for name, a in weights.items():
        form = _LORA.search(name)
        if form is None:
            continue
        module = opened.model.module(int(form["layer"]), form["module"])
        b = weights[name.replace("lora_A", "lora_B")]
        delta = scale * (b.float() @ a.float())
        if config.get("fan_in_fan_out"):
            delta = delta.T
        with torch.no_grad():
            weight = module.get_parameter("weight")
            weight.copy_(weight.float() + delta.to(weight.device))
        pairs += 2
    if pairs != len(weights) or not pairs:
        raise RequestError(
            f"the adapter {directory.name} holds {len(weights)} tensors, of which {pairs} are LoRA "
            "pairs of decoder layers; merge it into its base model and give that directory."
        )
