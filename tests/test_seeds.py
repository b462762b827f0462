"""Seeds of one setting are found and summed up, each shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from snt.anatomy import Anatomy
from snt.deltas import SliceKey
from snt.evaluation.seeds import Spread, distinct, origin_of, seed_groups
from snt.fingerprint import Fingerprint
from snt.masks import NeuronMask, save_mask
from snt.patches import Patch, save_patch

ANATOMY = Anatomy("llama", 2, d_model=8, d_ff=10, heads=4, kv_heads=2, head_dim=2)


def _patch(folder: Path, seed: int, lr: float = 1e-3, mask_seed: int = 0, **told: Any) -> Path:
    folder.mkdir()
    indices = torch.tensor([seed % 8], dtype=torch.int32)
    slices = {SliceKey(0, "self_attn.q_proj", "rows"): (indices, torch.full((1, 8), 0.1))}
    schedule = {"learning_rate": lr, "seed": seed}
    made = {"model": {"id": "m"}, "schedule": schedule, "mask_sha256": f"{seed}", **told}
    print_ = Fingerprint(ANATOMY.shape(), "w")
    save_patch(Patch(ANATOMY, slices, print_, made), folder / "patch.safetensors")
    held = NeuronMask(ANATOMY, {(0, "q"): indices}, provenance={"seed": mask_seed, "rule": "x"})
    save_mask(held, folder / "mask.safetensors")
    return folder


def test_groups(tmp_path: Path) -> None:
    made = {
        "one": _patch(tmp_path / "a", 1, mask_seed=5),
        "two": _patch(tmp_path / "b", 2),
        "other": _patch(tmp_path / "c", 3, lr=1e-2),
        "more": _patch(tmp_path / "d", 3, data={"sha256": "x"}),
        "three": _patch(tmp_path / "e", 3),
        "base": None,
    }
    origins = {name: origin_of(path) for name, path in made.items()}
    values = {name: {"over_refusal": 0.1 * n} for n, name in enumerate(made)}
    values["two"]["perplexity"] = 9.0
    (group,) = seed_groups(origins, values)
    assert group.seeds == {"one": 1, "two": 2, "three": 3}
    spread = group.metrics["over_refusal"]
    assert (spread.mean, spread.least, spread.most) == pytest.approx((0.5 / 3, 0.0, 0.4))
    assert (
        spread.values == {"one": 0.0, "two": 0.1, "three": 0.4}
        and "perplexity" not in group.metrics
    )
    told = group.as_json()
    assert told["metrics"]["over_refusal"]["max"] == 0.4 and told["seeds"]["two"] == 2
    assert not seed_groups({"base": None, "one": origins["one"]}, values)


def test_a_patch_that_says_little(tmp_path: Path) -> None:
    path = _patch(tmp_path / "a", 1, schedule=["odd"])
    (path / "mask.safetensors").unlink()
    origin = origin_of(path)
    assert origin is not None and origin.seed is None and len(origin.provenance) == 1
    assert origin_of(None) is None


def test_names() -> None:
    assert distinct(["p", "q", "p", "p"]) == ("p", "q", "p (2)", "p (3)")
    assert Spread.of({"a": 2.0}).as_json() == {
        "mean": 2.0,
        "min": 2.0,
        "max": 2.0,
        "values": {"a": 2.0},
    }
