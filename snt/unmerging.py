"""A patch out of a model directory again, every weight file bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from snt.atomic import sha256_of, whole_directory
from snt.deltas import SliceKey
from snt.errors import FormatError, MissingFileError, RunFailure
from snt.fingerprint import weight_files
from snt.merging import FORMAT, ORIGINALS, check_target, copy_model, put
from snt.tensor_files import read_tensors
from snt.weight_bytes import WeightFile


@dataclass(frozen=True)
class RevertReport:
    """Entries restored, and the weight files that are again what they were, by SHA-256."""

    entries: int
    files: tuple[str, ...]


def revert_patch(model_dir: Path, out_dir: Path) -> RevertReport:
    """Write `out_dir`: the model as it was before `apply_patch`, every weight file bit for bit.

    A model that was written in another precision than its base stays in that precision.

    Raises MissingFileError when `model_dir` holds no originals, FormatError when its weights were
    changed since, RunFailure when a restored file is not what it was.
    """
    check_target(out_dir)
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
                put(weight, key, tensors[f"{text}.indices"], original)
            except (KeyError, IndexError, RuntimeError) as error:
                raise FormatError(
                    f"{model_dir / ORIGINALS}: {text} does not fit: {error}"
                ) from error
            entries += original.numel() - _counted(tensors, text)
        for file in opened:
            if sha256_of(directory / file) != digests[file]["before"]:
                raise RunFailure(f"{file} is not what it was before the patch; get the model again")
    return RevertReport(entries, tuple(digests))


def _counted(tensors: Mapping[str, Tensor], text: str) -> int:
    """Entries of a slice of columns that its weight's rows hold as well."""
    place, _, axis = text.rpartition(".")
    rows = tensors.get(f"{place}.rows.indices")
    return 0 if axis == "rows" or rows is None else len(rows) * len(tensors[f"{text}.indices"])


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
