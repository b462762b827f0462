"""A patch into a model directory, shard by shard, on the bytes of the files.

A copied weight file is edited in place through a map of one weight at a time: its header and every
other byte stay those of the original, so that taking the patch out gives back the very same file.
In another precision the copy is converted in blocks first. At no time is more held than the patch
and two weights of one layer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from snt.anatomy import anatomy_of
from snt.atomic import sha256_of, whole_directory, write_json
from snt.checkpoint_dtype import all_of, bytes_changed, convert, declare, rounded
from snt.deltas import SliceKey, digest_of
from snt.errors import FormatError, MismatchError, NegativeResult, RequestError, RunFailure
from snt.fingerprint import fingerprint_of, weight_files, weight_name
from snt.patch_algebra import Slices, crossed
from snt.patches import Patch
from snt.progress import Progress, Silence
from snt.rounding import Kept, Rounding
from snt.tensor_files import write_tensors
from snt.weight_bytes import WeightFile

FORMAT = "snt-originals"
# In a folder of its own: servers load every safetensors file that lies beside the weights.
ORIGINALS = Path("snt") / "originals.safetensors"
REPORT = Path("snt") / "report.json"


@dataclass(frozen=True)
class ApplyReport:
    """What merging kept of the deltas, in which files.

    `dtype` of the patched weights as written, `base_dtype` as they were. `outside_changed` counts
    bytes outside the patched entries that differ from the original's, read back from disk.
    """

    kept: Kept
    dtype: str
    base_dtype: str
    outside_changed: int
    files: tuple[str, ...]


def apply_patch(
    patch: Patch,
    model_dir: Path,
    out_dir: Path,
    *,
    force: bool = False,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> ApplyReport:
    """Write `out_dir`: the model of `model_dir` with the deltas added to its weights.

    Deltas are added in float32 and rounded once to `dtype`, by default the checkpoint's. Raises
    MismatchError for another shape, or, unless `force`, other weights; RequestError for an
    `out_dir` in use, a model that is patched already or a precision that cannot be patched;
    NegativeResult when rounding keeps no entry; RunFailure when the disk is full.
    """
    check_target(out_dir)
    _check_model(patch, model_dir, force)
    files = weight_files(model_dir)
    if dtype is not None and all_of(dtype, sorted(set(files.values()))):
        dtype = None
    by_file = _by_file(patch, model_dir, files)
    slices = crossed(patch.slices)
    weights = {path.name for path in files.values()} if dtype is not None else set()
    originals: dict[str, Tensor] = {}
    digests: dict[str, dict[str, str]] = {}
    tally, found, outside = Rounding(), set(), 0
    work = sorted(weights | by_file.keys())
    with (
        whole_directory(out_dir) as directory,
        (progress or Silence()).task("merging", len(work), "files") as advance,
    ):
        copy_model(model_dir, directory, weights)
        for file in work:
            if dtype is not None:
                convert(model_dir / file, directory / file, dtype)
            keys = by_file.get(file, [])
            before = sha256_of(directory / file) if keys else ""
            mine = Rounding()
            for key in keys:
                name = weight_name(patch.anatomy, key.layer, key.module)
                weight, base = _write(model_dir / file, directory / file, name, key, slices, mine)
                originals[str(key)], originals[f"{key}.indices"] = base, slices[key][0]
                found.add((weight.dtype, base.dtype))
            changed = bytes_changed(model_dir / file, directory / file, dtype)
            outside += changed - mine.bytes_changed
            tally.merge(mine)
            if keys:
                digests[file] = {"before": before, "after": sha256_of(directory / file)}
            advance(1)
        kept = tally.result()
        _check_result(kept, outside, sorted(found, key=str))
        if dtype is not None:
            declare(directory, dtype)
        facts = {
            "format": FORMAT,
            "version": 1,
            "files": digests,
            "layers": patch.anatomy.family.layers,
            "patch": digest_of(patch.slices),
            "forced": force,
        }
        write_tensors(directory / ORIGINALS, originals, facts)
        names = [", ".join(sorted({_name(pair[at]) for pair in found})) for at in (0, 1)]
        report = ApplyReport(kept, names[1], names[0], outside, tuple(digests))
        write_json(directory / REPORT, {**asdict(report), "patch": facts["patch"]})
    return report


def copy_model(model_dir: Path, target: Path, without: set[str] | None = None) -> None:
    """Copy a model directory's files, following the links of the Hub's cache.

    `without`: names in the directory itself that are left out.
    """

    def left_out(folder: str, names: Sequence[str]) -> set[str]:
        return set(names) & (without or set()) if Path(folder) == model_dir else set()

    shutil.copytree(
        model_dir,
        target,
        dirs_exist_ok=True,
        symlinks=False,
        copy_function=shutil.copyfile,
        ignore=left_out,
    )


def rows_or_columns(weight: Tensor, key: SliceKey, indices: Tensor) -> Tensor:
    """A copy of a slice of a weight (d_out, d_in): rows (n, d_in) or columns (d_out, n)."""
    return weight.index_select(0 if key.axis == "rows" else 1, indices.long())


def put(weight: Tensor, key: SliceKey, indices: Tensor, values: Tensor) -> None:
    """Write a slice into a weight, in place."""
    weight.index_copy_(0 if key.axis == "rows" else 1, indices.long(), values)


def check_target(out_dir: Path) -> None:
    """Raises RequestError for a directory that holds something."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise RequestError(f"{out_dir} exists already; choose another place with -o")


def _by_file(patch: Patch, model_dir: Path, files: dict[str, Path]) -> dict[str, list[SliceKey]]:
    found: dict[str, list[SliceKey]] = {}
    for key in sorted(patch.slices):
        name = weight_name(patch.anatomy, key.layer, key.module)
        if name not in files:
            raise FormatError(f"{model_dir}: weight {name!r} is in none of its files")
        found.setdefault(files[name].name, []).append(key)
    return found


def _write(
    source: Path, target: Path, name: str, key: SliceKey, slices: Slices, tally: Rounding
) -> tuple[Tensor, Tensor]:
    """Write weight + Δ of one slice; returns the slice as the source has it, and as written before.

    Both are computed from the source, so slices that cross may be written in any order.
    """
    indices, delta = slices[key]
    weight = rows_or_columns(WeightFile(source).tensor(name), key, indices)
    written = WeightFile(target, writable=True).tensor(name)
    base = rounded(weight, written.dtype, name)
    stored = rounded(weight.float() + delta, written.dtype, name)
    put(written, key, indices, stored)
    rows = slices.get(SliceKey(key.layer, key.module, "rows")) if key.axis == "cols" else None
    if rows is None:
        tally.add(weight, base, delta, stored)
    else:
        # Entries that the rows hold too are counted with them.
        others = torch.ones(len(weight), dtype=torch.bool).index_fill(0, rows[0].long(), False)
        tally.add(*(values[others] for values in (weight, base, delta, stored)))
    return weight, base


def _check_result(
    kept: Kept, outside: int, found: Sequence[tuple[torch.dtype, torch.dtype]]
) -> None:
    if outside:
        raise RunFailure(
            f"{outside} bytes outside the patched entries differ from the base model's; nothing "
            "was written. Was the model changed meanwhile? Run it again"
        )
    if kept.changed:
        return
    if not kept.nonzero:
        raise NegativeResult(
            f"all {kept.entries} entries of the patch are zero, so the model would be its base; "
            "nothing was written"
        )
    names = ", ".join(sorted({_name(written) for _, written in found}))
    raise NegativeResult(
        f"none of the patch's {kept.nonzero} changed entries survives rounding to {names} (largest "
        f"|Δ| {kept.max_abs_delta:.2g}); nothing was written. Give --dtype float32, or export the "
        "patch with `snt patch export`"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_model(patch: Patch, model_dir: Path, force: bool) -> None:
    from transformers import AutoConfig

    if (model_dir / ORIGINALS).is_file():
        raise RequestError(
            f"{model_dir} holds a patch already; apply to its base model, take that patch out with "
            "`snt patch revert`, or join the two with `snt patch stack`"
        )
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
