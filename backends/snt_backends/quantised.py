"""Decoder weights in 8 or 4 bits through bitsandbytes. What entry points name: light to import."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snt.errors import RequestError, UnavailableError

if TYPE_CHECKING:
    import torch

    from snt.anatomy import Anatomy
    from snt_backends.quantised_model import QuantisedModel

INSTALL = "pip install 'bitsandbytes>=0.50'"


@dataclass(frozen=True)
class QuantisedBackend:
    """A width of the weights."""

    name: str
    summary: str
    bits: int

    def load(self, directory: Path, dtype: torch.dtype | None = None) -> QuantisedModel:
        """Load a full-precision model directory, its decoder's projections quantised on the way.

        `dtype` is that of everything else (embeddings, norms, head) and of the products; it
        defaults to the checkpoint's. Raises UnavailableError without bitsandbytes, RequestError for
        a mixture of experts and for a checkpoint that is quantised already.
        """
        if find_spec("bitsandbytes") is None:
            raise UnavailableError(
                f"the backend {self.name!r} needs bitsandbytes, which is not installed; {INSTALL}"
            )
        import torch
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
            BitsAndBytesConfig,
        )
        from transformers.utils import logging

        from snt.anatomy import anatomy_of
        from snt_backends.quantised_model import QuantisedModel

        config = AutoConfig.from_pretrained(directory)
        anatomy = anatomy_of(config)
        self._check(config, anatomy, directory)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = dtype or getattr(config, "dtype", None) or torch.float32
        wide = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
        narrow = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=precision
        )
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=precision,
            quantization_config=wide if self.bits == 8 else narrow,
            device_map={"": device},
        )
        # Quantised loading leaves embeddings and norms trainable.
        model.eval().requires_grad_(False)
        return QuantisedModel.of(model, AutoTokenizer.from_pretrained(directory), anatomy, device)

    def fast_dtype(self) -> torch.dtype:
        """As of the full backend: the products are of the same floats."""
        from snt_backends.full import fast_dtype

        return fast_dtype()

    def _check(self, config: Any, anatomy: Anatomy, directory: Path) -> None:
        if anatomy.family.experts is not None:
            raise RequestError(
                f"the backend {self.name!r} holds no {anatomy.model_type} model: bitsandbytes does "
                "not quantise experts that are one tensor; use --backend full"
            )
        if getattr(config, "quantization_config", None) is not None:
            raise RequestError(
                f"{directory.name} is quantised already, and {self.name!r} starts from a "
                "checkpoint in full precision; give the model that it was made from"
            )


int8 = QuantisedBackend("int8", "decoder weights in 8 bits (LLM.int8), CPU or one GPU", 8)
int4 = QuantisedBackend("int4", "decoder weights in 4 bits (nf4), CPU or one GPU", 4)
