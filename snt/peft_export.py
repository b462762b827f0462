"""A patch as a LoRA adapter of PEFT: the same ΔW as a product of two factors, to the bit.

W + B·A with A (r, d_in) and B (d_out, r). Rows: A holds the delta's rows and B is one-hot, a 1 in
row i of the weight for each. Columns: B holds the delta's columns and A is one-hot. A weight with
both has the two side by side. alpha = r everywhere, so nothing is multiplied by anything but 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snt.deltas import SliceKey
from snt.errors import RequestError
from snt.patch_algebra import Slices
from snt.patches import Patch, module_shape

# The values of --max-lora-rank in vLLM (MaxLoRARanks, version 0.14 and later).
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_NAME = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)?")
Place = tuple[int, str]


@dataclass(frozen=True)
class Adapter:
    """`tensors` of adapter_model.safetensors and `config` of adapter_config.json.

    `ranks` by the module's full name, what they are in the files.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    ranks: Mapping[str, int]

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(self.ranks.values())


def exported(patch: Patch, base: str, revision: str | None, *, uniform: bool = False) -> Adapter:
    """The adapter of a patch. `uniform`: every module padded with zeros to one rank vLLM allows.

    A uniform adapter has a module in every layer or in none, zero where the patch changes nothing:
    a server that stacks the layers of a module leaves it out, silently, when one is missing.

    Raises RequestError for a patch with no entry, for a name that is no model id, and for
    `uniform` when a rank is above the largest that is served.
    """
    if not _NAME.fullmatch(base):
        raise RequestError(
            f"{base!r} is no model id; give --base as it is named on the Hub, such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    needed = ranks(patch.slices)
    if not needed:
        raise RequestError("the patch holds no entry; there is nothing to export")
    if uniform:
        one = uniform_rank({f"layers.{at[0]}.{at[1]}": rank for at, rank in needed.items()})
        modules = sorted({module for _, module in needed})
        needed = {(layer, name): one for layer in range(patch.anatomy.layers) for name in modules}
    names = {place: f"{patch.anatomy.family.layers}.{place[0]}.{place[1]}" for place in needed}
    tensors = {}
    for place, rank in needed.items():
        shape = module_shape(patch.anatomy, place[1])
        if shape is None:
            raise RequestError(f"{names[place]} is no module that LoRA can join")
        parts = [
            (axis, *patch.slices[key])
            for axis in ("rows", "cols")
            if (key := SliceKey(*place, axis)) in patch.slices
        ]
        a, b = factors(shape, parts, rank)
        tensors[f"base_model.model.{names[place]}.lora_A.weight"] = a
        tensors[f"base_model.model.{names[place]}.lora_B.weight"] = b
    held = {names[place]: rank for place, rank in needed.items()}
    return Adapter(tensors, _config(held, base, revision), held)


def ranks(slices: Slices) -> dict[Place, int]:
    """Rank of every module's ΔW as it is exported: its rows and columns together."""
    found: dict[Place, int] = {}
    for key, (indices, _) in sorted(slices.items()):
        if len(indices):
            place = (key.layer, key.module)
            found[place] = found.get(place, 0) + len(indices)
    return found


def factors(
    shape: tuple[int, int], parts: Sequence[tuple[str, Tensor, Tensor]], rank: int
) -> tuple[Tensor, Tensor]:
    """A (rank, d_in) and B (d_out, rank) float32 with B·A = ΔW (d_out, d_in).

    `parts`: axis, indices (n,) and delta, rows (n, d_in) or columns (d_out, n).
    """
    a, b = torch.zeros(rank, shape[1]), torch.zeros(shape[0], rank)
    at = 0
    for axis, indices, delta in parts:
        here = torch.arange(at, at + len(indices))
        if axis == "rows":
            a[here], b[indices.long(), here] = delta, 1.0
        else:
            a[here, indices.long()], b[:, here] = 1.0, delta
        at += len(indices)
    return a, b


def uniform_rank(needed: Mapping[str, int]) -> int:
    """The smallest served rank that holds every module. Raises RequestError above the largest."""
    largest = max(needed, key=lambda name: (needed[name], name))
    fitting = [rank for rank in SERVED_RANKS if rank >= needed[largest]]
    if not fitting:
        raise RequestError(
            f"{above_served(needed)}; leave --uniform-rank out, tune a smaller mask, or serve the "
            "merged model (`snt patch apply`)"
        )
    return fitting[0]


def above_served(needed: Mapping[str, int]) -> str | None:
    """What is said when a module's rank is more than servers allow, with numbers."""
    over = [name for name, rank in needed.items() if rank > SERVED_RANKS[-1]]
    if not over:
        return None
    largest = max(over, key=lambda name: (needed[name], name))
    return (
        f"{len(over)} of {len(needed)} modules need a rank above {SERVED_RANKS[-1]}, the largest "
        f"that vLLM allows: {largest} needs {needed[largest]}"
    )


def _config(held: Mapping[str, int], base: str, revision: str | None) -> dict[str, Any]:
    """adapter_config.json: what differs from PEFT's defaults and what servers ask for by name.

    Written without PEFT, whose own list of settings grows with its version: an older one, or a
    server, refuses settings that it does not know.
    """
    largest = max(held.values())
    own = {name: rank for name, rank in held.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": own,
        "alpha_pattern": own,
        "target_modules": sorted(held),
        "modules_to_save": None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
