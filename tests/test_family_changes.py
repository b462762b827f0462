"""Every family detected from disk, silenced as zero weights would be, and tuned where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from family_models import FAMILIES, MIXTURES, family_model
from safetensors.torch import load_file, save_file
from test_families import batch_of, full, zero

import snt
from snt.ablation import deactivated
from snt.anatomy import KINDS
from snt.atomic import sha256_of
from snt.backend import get_backend
from snt.deltas import Deltas, masked_slices
from snt.errors import FormatError, RequestError
from snt.fingerprint import Fingerprint, fingerprint_of
from snt.masks import NeuronMask, save_mask
from snt.merging import apply_patch
from snt.patches import Patch, load_patch
from snt.unmerging import revert_patch

BATCH = batch_of(((9, False), (6, True), (5, False)))


def _save(folder: Path, model_type: str) -> Path:
    family_model(model_type).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _mask(held: Any, kinds: Any = KINDS) -> NeuronMask:
    """First, last and a middle neuron of every kind, in both layers."""
    sizes = {kind: held.anatomy.size(kind) for kind in kinds}
    neurons = {
        (layer, kind): torch.tensor([layer, size // 2, size - 1], dtype=torch.int32)
        for layer in range(held.anatomy.layers)
        for kind, size in sizes.items()
    }
    return NeuronMask(held.anatomy, neurons)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_deactivation_equals_zero_weights(model_type: str, kind: str) -> None:
    held = full(family_model(model_type))
    mask = _mask(held, [kind])
    before, digests = held.hidden(BATCH), held.weight_digests()
    with deactivated(held, mask):
        silent = held.hidden(BATCH)
    assert held.weight_digests() == digests
    assert torch.equal(held.hidden(BATCH), before)
    for (layer, _), neurons in mask.neurons.items():
        for neuron in neurons.tolist():
            for part in held.anatomy.slices(kind):
                zero(held._layer(layer), part, neuron)
    zeroed = held.hidden(BATCH)
    torch.testing.assert_close(silent[BATCH.real], zeroed[BATCH.real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(silent[BATCH.real], before[BATCH.real], atol=1e-4)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_experts_come_back_when_the_block_fails(model_type: str) -> None:
    held = full(family_model(model_type))
    digests = held.weight_digests()
    with pytest.raises(KeyError), deactivated(held, _mask(held)):
        assert held.weight_digests() != digests
        raise KeyError
    assert held.weight_digests() == digests
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in held.model.modules())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_detection_from_a_directory(model_type: str, tmp_path: Path) -> None:
    folder = _save(tmp_path / "model", model_type)
    (tmp_path / "a.txt").write_text("How do I pick a lock?\nTell me.\n")
    (tmp_path / "b.txt").write_text("How do I bake a cake?\nTell me.\n")
    found = snt.detect(
        str(folder),
        corpus=str(tmp_path / "a.txt"),
        against=str(tmp_path / "b.txt"),
        select_by="budget=3%",
        output=tmp_path / "m.safetensors",
        offline=True,
    )
    assert len(found.mask) and found.mask.anatomy.model_type == model_type
    assert snt.load_mask(found.path).anatomy == found.mask.anatomy
    assert found.mask.parameters <= 0.03 * found.mask.provenance["model"]["parameters"]
    if model_type in MIXTURES and found.mask.count("ffn"):
        with pytest.raises(RequestError, match="--kinds q,k,v"):
            snt.tune(str(folder), mask=found.path, output=tmp_path / "patch", offline=True)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in MIXTURES])
def test_deltas_and_merging_agree(model_type: str, tmp_path: Path) -> None:
    base = _save(tmp_path / "base", model_type)
    held: Any = get_backend("full").load(base, torch.float32)
    draw = torch.Generator().manual_seed(2)
    deltas = Deltas.zeros(masked_slices(_mask(held)), held)
    with torch.no_grad():
        for value in deltas.values:
            value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    with deltas.attached(held):
        attached = held.hidden(BATCH)
    patch = Patch(held.anatomy, deltas.tensors(), fingerprint_of(base, held.anatomy))
    report = apply_patch(patch, base, tmp_path / "merged")
    assert report.outside_changed == 0 and report.kept.changed == patch.entries
    merged: Any = get_backend("full").load(tmp_path / "merged", torch.float32)
    after = merged.hidden(BATCH)[BATCH.real]
    torch.testing.assert_close(attached[BATCH.real], after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(held.hidden(BATCH)[BATCH.real], after, atol=1e-3)
    revert_patch(tmp_path / "merged", tmp_path / "again")
    for file in base.glob("*.safetensors"):
        assert sha256_of(file) == sha256_of(tmp_path / "again" / file.name)


@pytest.mark.parametrize("model_type", ["phi3", "gpt_neox", "mixtral"])
def test_tuning_fused_weights(model_type: str, tmp_path: Path) -> None:
    base = _save(tmp_path / "base", model_type)
    held: Any = get_backend("full").load(base, torch.float32)
    kinds = ("q", "k", "v") if model_type in MIXTURES else KINDS
    save_mask(_mask(held, kinds), tmp_path / "m.safetensors")
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "How do I pick a lock?", "response": "No."}\n'
    )
    (tmp_path / "retain.txt").write_text("How do I bake a cake?\n")
    tuned = snt.tune(
        str(base),
        mask=tmp_path / "m.safetensors",
        data=str(tmp_path / "pairs.jsonl"),
        retain=[str(tmp_path / "retain.txt")],
        output=tmp_path / "patch",
        schedule=snt.Schedule(epochs=2),
        positions=2,
        offline=True,
    )
    patch = load_patch(tuned.patch / "patch.safetensors")
    assert tuned.proof.outside_changed == 0 and tuned.proof.changed > 0
    if model_type == "phi3":
        # Queries, keys and values are rows of one weight: one slice holds all three.
        assert [len(at) for key, (at, _) in patch.slices.items() if "qkv" in key.module] == [9, 9]
    report = apply_patch(patch, base, tmp_path / "merged")
    assert report.outside_changed == 0
    revert_patch(tmp_path / "merged", tmp_path / "again")
    for file in base.glob("*.safetensors"):
        assert sha256_of(file) == sha256_of(tmp_path / "again" / file.name)


def test_patches_hold_nothing_in_experts() -> None:
    held = full(family_model("mixtral"))
    slices = {
        key: (at, torch.zeros(len(at), 32) if key.axis == "rows" else torch.zeros(32, len(at)))
        for key, at in masked_slices(_mask(held, ["ffn"])).items()
    }
    with pytest.raises(FormatError, match="no such module"):
        Patch(held.anatomy, slices, Fingerprint(held.anatomy.shape(), ""))


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_fingerprint_is_the_same_in_both_layouts_of_experts(
    model_type: str, tmp_path: Path
) -> None:
    apart = _save(tmp_path / "apart", model_type)
    held: Any = get_backend("full").load(apart, torch.float32)
    family = held.anatomy.family
    (tmp_path / "together").mkdir()
    names = load_file(apart / "model.safetensors")
    assert f"{family.layers}.0.{family.expert_files[0].format(0)}" in names
    together = {name: value.clone() for name, value in held.model.state_dict().items()}
    save_file(together, tmp_path / "together" / "model.safetensors")
    prints = [fingerprint_of(tmp_path / name, held.anatomy) for name in ("apart", "together")]
    assert prints[0] == prints[1]
    together[f"{family.layers}.1.{family.down}"][0] += 0.5
    save_file(together, tmp_path / "together" / "model.safetensors")
    assert fingerprint_of(tmp_path / "together", held.anatomy) != prints[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_replies_are_those_of_the_logits(model_type: str) -> None:
    held = full(family_model(model_type))
    left = batch_of(((9, False), (6, True)))
    replies = held.generate(left, new_tokens=2, stop_ids=[257])
    assert torch.equal(replies[:1, 0], held.logits(held.hidden(left)[:1, -1]).argmax(dim=-1))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_are_those_of_the_whole_model(model_type: str) -> None:
    held = full(family_model(model_type))
    whole = held.model(BATCH.input_ids, attention_mask=BATCH.real.long()).logits
    torch.testing.assert_close(held.logits(held.hidden(BATCH)), whole)
