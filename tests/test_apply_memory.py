"""Merging into a sharded checkpoint takes the memory of a part of one shard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_patches import write_patch
from transformers import LlamaConfig

from snt.anatomy import anatomy_of
from snt.deltas import SliceKey
from snt.fingerprint import fingerprint_of
from snt.patches import Patch, module_shape

LAYERS, WIDTH, D_FF = 8, 512, 2048
# The largest memory of a process since it was reset: what it allocated and what it mapped.
CODE = """
import sys
from pathlib import Path
from snt.checkpoint_dtype import dtype_named
from snt.merging import apply_patch
from snt.patches import load_directory
import transformers.models.llama.configuration_llama

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

base, patch, out = (Path(word) for word in sys.argv[1:])
held = load_directory(patch)
# Once before, so that what is imported on the way is there already.
apply_patch(held, base, out / "warm")
for name in ("auto", "bf16"):
    Path("/proc/self/clear_refs").write_text("5")
    idle = memory("VmRSS")
    apply_patch(held, base, out / name, dtype=dtype_named(name))
    print(memory("VmHWM") - idle)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with one file a layer."""
    folder = tmp_path_factory.mktemp("sharded")
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=D_FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    index = {}
    for layer in range(LAYERS):
        shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"mlp.{name}_proj": (D_FF, WIDTH) for name in ("gate", "up")}
        shapes["mlp.down_proj"] = (WIDTH, D_FF)
        file = f"model-{layer + 1:05d}-of-{LAYERS:05d}.safetensors"
        tensors = {
            f"model.layers.{layer}.{name}.weight": torch.full(shape, 0.02 * (layer + 1))
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    listed = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture(scope="module")
def patch(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1% of every projection's neurons."""
    anatomy = anatomy_of(LlamaConfig.from_pretrained(base))
    slices = {}
    for layer in range(LAYERS):
        for module in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            shape = module_shape(anatomy, module)
            assert shape is not None
            columns = module == "mlp.down_proj"
            key = SliceKey(layer, module, "cols" if columns else "rows")
            count = (shape[1] if columns else shape[0]) // 100
            at = torch.arange(3, 3 + 97 * count, 97, dtype=torch.int32)
            at = at[at < (shape[1] if columns else shape[0])]
            size = (shape[0], len(at)) if columns else (len(at), shape[1])
            slices[key] = (at, torch.full(size, 0.01))
    made = Patch(anatomy, slices, fingerprint_of(base, anatomy))
    return write_patch(made, tmp_path_factory.mktemp("patch") / "patch")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts it")
def test_peak_is_below_that_of_a_shard(base: Path, patch: Path, tmp_path: Path) -> None:
    """In the checkpoint's precision and in another."""
    shards = sorted(base.glob("*.safetensors"))
    largest = max(path.stat().st_size for path in shards)
    assert len(shards) == LAYERS and largest > 16 << 20
    done = subprocess.run(
        [sys.executable, "-c", CODE, base, patch, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(line) / largest for line in done.stdout.split()]
    assert len(peaks) == 2 and max(peaks) <= 1.5, peaks
