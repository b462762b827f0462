"""`doctor`: what this machine has, what is installed, and which backend holds which model here."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from snt import __version__
from snt.backend import ModelSize
from snt.backend_choice import Option, choose
from snt.backend_plugins import list_backends
from snt.errors import RequestError
from snt.machine import Device, cores, devices, instructions
from snt.model_refs import ALIASES
from snt.model_sizes import ALIAS_SIZES
from snt.preflight import Work

LIBRARIES = (
    *("torch", "transformers", "accelerate", "bitsandbytes", "peft", "safetensors", "datasets"),
    *("lm-eval", "nanogcg"),
)
# What the defaults of `detect` and `tune` come to, in tokens that decide the memory.
_DETECT = Work(("detect",), tokens=1, longest=100, at_once=800, importance="exact")
# By parts in a thousand of the parameters that the default mask trains.
_TRAINED_SHARE = 10


def examine() -> dict[str, Any]:
    """The report of `snt doctor --json`: memory in bytes, None where a model fits nowhere."""
    found = devices()
    return {
        "snt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "instructions": instructions(),
        "devices": [asdict(device) for device in found],
        "libraries": {name: _version(name) for name in LIBRARIES},
        "backends": [asdict(one) for one in list_backends()],
        "models": [_model(name, ALIAS_SIZES[name], found[0]) for name in ALIASES],
    }


def _model(name: str, size: ModelSize, device: Device) -> dict[str, Any]:
    from snt.training_plan import PART

    tune = Work(
        ("tune", "generate", "score", "patch"),
        trained=1,
        replies=1,
        new_tokens=64,
        rows=16,
        longest=120,
        at_once=16 * 120,
        backward_at_once=PART * 80,
        trainable=size.parameters * _TRAINED_SHARE // 1000,
    )
    return {
        "name": name,
        "parameters": size.parameters,
        "detect": _fitting(name, size, _DETECT, device, exact=True),
        "tune": _fitting(name, size, tune, device, exact=False),
    }


def _fitting(
    name: str, size: ModelSize, work: Work, device: Device, *, exact: bool
) -> dict[str, Any]:
    try:
        taken: Option = choose(name, size, work, device, exact=exact).option
    except RequestError as error:
        return {"backend": None, "why": str(error)}
    return {"backend": taken.name, "dtype": taken.dtype, "bytes": taken.memory.total}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
