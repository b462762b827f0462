"""Holds the whole model on the CPU, so that a GPU stays free for other work. It does not train."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from snt_backends.full import FullModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from snt.anatomy import anatomy_of
from snt.errors import RequestError


class OnCpu(FullModel):
    """The built-in whole model, kept from training."""

    def training(self) -> AbstractContextManager[None]:
        raise RequestError("backend 'example' does not train; use --backend full")


def load(directory: Path, dtype: torch.dtype | None = None) -> OnCpu:
    """Load a model directory; `dtype` defaults to the checkpoint's."""
    anatomy = anatomy_of(AutoConfig.from_pretrained(directory))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto")
    model.eval().requires_grad_(False)
    return OnCpu(model, AutoTokenizer.from_pretrained(directory), anatomy, torch.device("cpu"))


def fast_dtype() -> torch.dtype:
    """float32 is never slow on a CPU."""
    return torch.float32
