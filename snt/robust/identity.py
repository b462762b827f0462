"""Which model is compared, known without loading it, so that a finished run loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from snt.anatomy import Anatomy, anatomy_of
from snt.backend import get_backend
from snt.backend_choice import AUTO
from snt.chat import Chat
from snt.errors import unknown_name
from snt.fingerprint import fingerprint_of
from snt.model_refs import default_ref
from snt.opening import (
    DTYPES,
    ModelChoice,
    dtype_name,
    resolve_choice,
)
from snt.progress import Progress, Silence


@dataclass(frozen=True)
class Identity:
    """A resolved model: how to open it, its anatomy, and what its results depend on.

    `measured_dtype` is the precision of the products when it is measured and fine-tuned.
    """

    choice: ModelChoice
    anatomy: Anatomy
    measured_dtype: str
    description: dict[str, Any]


def identify(choice: ModelChoice, named: str | None, progress: Progress | None = None) -> Identity:
    """Resolve a choice and read what identifies the model. Raises as `open_model` does."""
    from transformers import AutoConfig, AutoTokenizer

    progress = progress or Silence()
    if choice.dtype not in DTYPES:
        raise unknown_name("dtype", choice.dtype, DTYPES)
    # Fine-tuning changes the weights themselves, so the whole model must be held.
    name = "full" if choice.backend in (None, AUTO) else choice.backend
    backend = get_backend(name)
    resolved = resolve_choice(choice, named, progress)
    anatomy = anatomy_of(AutoConfig.from_pretrained(resolved.directory))
    dtype = dtype_name(backend.fast_dtype()) if choice.dtype == "auto" else choice.dtype
    chat = Chat(AutoTokenizer.from_pretrained(resolved.directory), None, choice.system)
    description = {
        "model": {"id": resolved.id, "revision": resolved.revision},
        "fingerprint": fingerprint_of(resolved.directory, anatomy).weights,
        "backend": name,
        "dtype": dtype,
        **chat.describe(),
    }
    # By its name from here on: that the default is taken is said once.
    found = replace(choice, ref=choice.ref or named or default_ref(), backend=name)
    return Identity(found, anatomy, dtype, description)
