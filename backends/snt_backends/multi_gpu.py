"""One model in several processes: a copy in each, or each layer's weights dealt out (FSDP2).

The processes have met before a model is loaded (torch.distributed, nccl on GPUs, gloo elsewhere);
which batches each of them runs is decided above. With one process both are the whole model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from snt.anatomy import anatomy_of
from snt.backend import Batch
from snt.errors import RunFailure
from snt_backends.full import FullModel, weight_digest
from snt_backends.full import fast_dtype as _fast_dtype
from snt_backends.full import load as _load_whole


@dataclass(frozen=True)
class ShardedModel(FullModel):
    """A model whose decoder layers are whole only while they run.

    Embeddings, head and norms are in every process. All processes must run the same batches: a
    layer's weights come together from all of them.
    """

    in_step: bool = True

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def hidden(self, batch: Batch) -> Tensor:
        # Not by the rows' common beginning: whether there is one depends on the rows, and each
        # process must make the same forwards.
        decoder = self.model.get_submodule(self.anatomy.family.decoder)
        output: Tensor = decoder(
            input_ids=batch.input_ids.to(self.device),
            attention_mask=batch.real.to(self.device).long(),
            use_cache=False,
        ).last_hidden_state
        return output

    def without_gradients(self) -> AbstractContextManager[Any]:
        # See _with_normal_tensors: the decoder must be able to write to what is made here.
        return torch.no_grad()

    def weight_digests(self) -> dict[str, tuple[int, str]]:
        found = {}
        for name, parameter in self.model.named_parameters():
            found[name] = weight_digest(_whole(parameter))
        return found

    def _parameter(self, layer: int, module: str) -> Tensor:
        return _whole(super()._parameter(layer, module))


@dataclass(frozen=True)
class _Kind:
    """A backend of this module, as an entry point names it."""

    name: str
    summary: str
    loader: Callable[[Path, torch.dtype | None], FullModel]
    several_processes: bool = True

    def load(self, directory: Path, dtype: torch.dtype | None = None) -> FullModel:
        """Load a model directory on this process's device; `dtype` defaults to the checkpoint's.

        Raises RunFailure when the processes have not met.
        """
        told = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
        met = dist.get_world_size() if dist.is_initialized() else 1
        if told != met:
            raise RunFailure(
                f"{told} processes were started and {met} met; call snt.processes.join"
            )
        return self.loader(directory, dtype)

    def fast_dtype(self) -> torch.dtype:
        """As the full backend's."""
        return _fast_dtype()


def _sharded(directory: Path, dtype: torch.dtype | None) -> FullModel:
    if not dist.is_initialized():
        return _load_whole(directory, dtype)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    anatomy = anatomy_of(AutoConfig.from_pretrained(directory))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or "auto")
    model.eval().requires_grad_(False)
    decoder = model.get_submodule(anatomy.family.decoder)
    layers = model.get_submodule(anatomy.family.layers)
    # A layer at a time goes to the device, so that it never holds more than its part and a layer.
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = {one for one in decoder.parameters() if id(one) not in inside}
    # The decoder owns no weights of its own; it lets a layer's weights come while another runs.
    fully_shard(decoder, mesh=mesh, ignored_params=outside)
    decoder.forward = _with_normal_tensors(decoder.forward)
    for parameter in model.parameters():
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return ShardedModel(model, AutoTokenizer.from_pretrained(directory), anatomy, device)


def _with_normal_tensors(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Where only an inference is wanted, without gradients, but not in inference mode.

    FSDP keeps the memory into which weights are gathered, and what is made in inference mode could
    never be written to in a training.
    """

    @wraps(forward)
    def run(*words: Any, **named: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return forward(*words, **named)
        with torch.inference_mode(False), torch.no_grad():
            return forward(*words, **named)

    return run


def _whole(parameter: Tensor) -> Tensor:
    """All of a weight, in every process; all must ask for it."""
    found = parameter.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found


replicated = _Kind(
    "multi-gpu", "several processes with a copy of the model each, batches dealt out", _load_whole
)
sharded = _Kind(
    "fsdp", "several processes with a part of every layer each, for models beyond one", _sharded
)
