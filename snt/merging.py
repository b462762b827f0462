"""A patch into a model directory and out again, shard by shard, on the bytes of the files.

A copied weight file is edited in place through a memory map: its header and every other byte stay
those of the original, so that taking the patch out gives back the very same file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from snt.anatomy import anatomy_of
from snt.atomic import sha256_of, whole_directory
from snt.deltas import SliceKey, digest_of
from snt.errors import FormatError, MismatchError, MissingFileError, RequestError, RunFailure
from snt.fingerprint import fingerprint_of, weight_files, weight_name
from snt.patches import Patch
from snt.tensor_files import read_tensors, write_tensors
from snt.weight_bytes import WeightFile

FORMAT = "snt-originals"
# In a folder of its own: servers load every safetensors file that lies beside the weights.
ORIGINALS = Path("snt") / "originals.safetensors"


@dataclass(frozen=True)
class ApplyReport:
    """What merging kept of the deltas. `rounding` is the largest |stored − (weight + Δ)|.

    `entries` of the patch, `changed` of them differ in the file; `outside_changed` counts bytes
    outside the patched entries that differ from the original, read back from disk.
    """

    entries: int
    changed: int
    dtype: str
    max_abs_delta: float
    rounding: float
    outside_changed: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class RevertReport:
    """Entries restored, and the weight files that are again what they were, by SHA-256."""

    entries: int
    files: tuple[str, ...]


def apply_patch(
    patch: Patch, model_dir: Path, out_dir: Path, *, force: bool = False
) -> ApplyReport:
    """Write `out_dir`: the model of `model_dir` with the deltas added to its weights.

    Deltas are added in float32 and rounded to the checkpoint's precision. Raises MismatchError for
    another shape, or, unless `force`, other weights; RequestError for an `out_dir` in use or a
    precision that cannot be patched; RunFailure when the disk is full.
    """
    _check_target(out_dir)
    _check_model(patch, model_dir, force)
    files = weight_files(model_dir)
    by_file: dict[str, list[SliceKey]] = {}
    for key in sorted(patch.slices):
        name = weight_name(patch.anatomy, key.layer, key.module)
        if name not in files:
            raise FormatError(f"{model_dir}: weight {name!r} is in none of its files")
        by_file.setdefault(files[name].name, []).append(key)
    originals: dict[str, Tensor] = {}
    digests: dict[str, dict[str, str]] = {}
    tally = _Tally()
    with whole_directory(out_dir) as directory:
        copy_model(model_dir, directory)
        for file, keys in by_file.items():
            before = sha256_of(directory / file)
            weights = WeightFile(directory / file, writable=True)
            for key in keys:
                name = weight_name(patch.anatomy, key.layer, key.module)
                weight = weights.tensor(name)
                indices, delta = patch.slices[key]
                originals[str(key)] = _slice(weight, key, indices).clone()
                originals[f"{key}.indices"] = indices
                tally.add(weights.dtype(name), *_write(weight, key, indices, delta))
            weights.flush()
            outside = _bytes_changed_outside(model_dir / file, directory / file, patch, keys)
            tally.outside += outside
            digests[file] = {"before": before, "after": sha256_of(directory / file)}
        write_tensors(
            directory / ORIGINALS,
            originals,
            {
                "format": FORMAT,
                "version": 1,
                "files": digests,
                "layers": patch.anatomy.family.layers,
                "patch": digest_of(patch.slices),
                "forced": force,
            },
        )
    return tally.report(tuple(by_file))


def revert_patch(model_dir: Path, out_dir: Path) -> RevertReport:
    """Write `out_dir`: the model as it was before `apply_patch`, every weight file bit for bit.

    Raises MissingFileError when `model_dir` holds no originals, FormatError when its weights were
    changed since, RunFailure when a restored file is not what it was.
    """
    _check_target(out_dir)
    if not (model_dir / ORIGINALS).is_file():
        raise MissingFileError(
            f"{model_dir} holds no {ORIGINALS}; only what `snt patch apply` wrote can be reverted"
        )
    tensors, metadata = read_tensors(model_dir / ORIGINALS, FORMAT)
    digests, layers = _originals_facts(model_dir, metadata)
    files = weight_files(model_dir)
    for file, digest in digests.items():
        if sha256_of(model_dir / file) != digest["after"]:
            raise FormatError(
                f"{model_dir / file} was changed since the patch was applied; it cannot be reverted"
            )
    entries = 0
    with whole_directory(out_dir) as directory:
        copy_model(model_dir, directory)
        shutil.rmtree(directory / ORIGINALS.parent)
        opened = {file: WeightFile(directory / file, writable=True) for file in digests}
        for text, original in tensors.items():
            if text.endswith(".indices"):
                continue
            key = _key(model_dir, text)
            name = f"{layers}.{key.layer}.{key.module}.weight"
            try:
                weight = opened[files[name].name].tensor(name)
                _restore(weight, key, tensors[f"{text}.indices"], original)
            except (KeyError, IndexError, RuntimeError) as error:
                raise FormatError(
                    f"{model_dir / ORIGINALS}: {text} does not fit: {error}"
                ) from error
            entries += original.numel()
        for file, weights in opened.items():
            weights.flush()
            if sha256_of(directory / file) != digests[file]["before"]:
                raise RunFailure(f"{file} is not what it was before the patch; get the model again")
    return RevertReport(entries, tuple(digests))


def copy_model(model_dir: Path, target: Path) -> None:
    """Copy a model directory's files, following the links of the Hub's cache."""
    shutil.copytree(
        model_dir, target, dirs_exist_ok=True, symlinks=False, copy_function=shutil.copyfile
    )


@dataclass
class _Tally:
    entries: int = 0
    changed: int = 0
    largest: float = 0.0
    rounding: float = 0.0
    outside: int = 0
    dtype: str = ""

    def add(self, dtype: torch.dtype, changed: int, delta: Tensor, rounding: float) -> None:
        self.entries += delta.numel()
        self.changed += changed
        self.largest = max(self.largest, float(delta.abs().max()) if delta.numel() else 0.0)
        self.rounding = max(self.rounding, rounding)
        self.dtype = str(dtype).removeprefix("torch.")

    def report(self, files: tuple[str, ...]) -> ApplyReport:
        return ApplyReport(
            self.entries, self.changed, self.dtype, self.largest, self.rounding, self.outside, files
        )


def _write(
    weight: Tensor, key: SliceKey, indices: Tensor, delta: Tensor
) -> tuple[int, Tensor, float]:
    """Add a delta; returns how many entries changed, the delta, and the largest rounding."""
    before = _slice(weight, key, indices)
    wanted = before.float() + delta
    stored = wanted.to(weight.dtype)
    _restore(weight, key, indices, stored)
    rounding = float((stored.float() - wanted).abs().max()) if delta.numel() else 0.0
    return int((stored != before).sum()), delta, rounding


def _slice(weight: Tensor, key: SliceKey, indices: Tensor) -> Tensor:
    return weight.index_select(0 if key.axis == "rows" else 1, indices.long())


def _restore(weight: Tensor, key: SliceKey, indices: Tensor, values: Tensor) -> None:
    weight.index_copy_(0 if key.axis == "rows" else 1, indices.long(), values)


def _bytes_changed_outside(original: Path, merged: Path, patch: Patch, keys: list[SliceKey]) -> int:
    """Bytes that differ between the files, those of the patched entries left out."""
    first, second = (
        torch.from_file(str(p), shared=False, size=p.stat().st_size, dtype=torch.uint8)
        for p in (original, merged)
    )
    allowed = 0
    step = 1 << 26
    changed = sum(
        int((first[at : at + step] != second[at : at + step]).sum())
        for at in range(0, len(first), step)
    )
    source, target = WeightFile(original, writable=False), WeightFile(merged, writable=False)
    for key in keys:
        name = weight_name(patch.anatomy, key.layer, key.module)
        indices = patch.slices[key][0]
        one, two = (_slice(w.tensor(name), key, indices).contiguous() for w in (source, target))
        allowed += int((one.view(torch.uint8) != two.view(torch.uint8)).sum())
    return changed - allowed


def _check_target(out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise RequestError(f"{out_dir} exists already; choose another place with -o")


def _check_model(patch: Patch, model_dir: Path, force: bool) -> None:
    from transformers import AutoConfig

    anatomy = anatomy_of(AutoConfig.from_pretrained(model_dir))
    if anatomy != patch.anatomy:
        raise MismatchError(
            f"the patch is for a model of another shape: {patch.anatomy.shape()}, not "
            f"{anatomy.shape()}; give its base model with --model"
        )
    found = fingerprint_of(model_dir, anatomy)
    if found != patch.fingerprint and not force:
        raise MismatchError(
            f"the patch was trained beside other weights (fingerprint "
            f"{patch.fingerprint.weights[:12]}, here {found.weights[:12]}); give its base model "
            "with --model, or --force"
        )


def _originals_facts(
    model_dir: Path, metadata: Mapping[str, object]
) -> tuple[dict[str, dict[str, str]], str]:
    files = metadata.get("files")
    sound = isinstance(files, dict) and all(
        isinstance(digest, dict)
        and {"before", "after"} <= digest.keys()
        and Path(str(file)).name == file
        and (model_dir / file).is_file()
        for file, digest in files.items()
    )
    if not sound or not isinstance(files, dict):
        raise FormatError(f"{model_dir / ORIGINALS}: its metadata names no files of this model")
    return files, str(metadata.get("layers"))


def _key(model_dir: Path, text: str) -> SliceKey:
    parts = text.split(".")
    if len(parts) < 4 or parts[-1] not in ("rows", "cols") or not parts[1].isdecimal():
        raise FormatError(f"{model_dir / ORIGINALS}: {text!r} names no slice")
    module = ".".join(parts[2:-1])
    return SliceKey(int(parts[1]), module, "rows" if parts[-1] == "rows" else "cols")
