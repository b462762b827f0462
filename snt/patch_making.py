"""`snt patch stack` and `snt patch scale`: patch directories made of others, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import torch

from snt import __version__
from snt.atomic import whole_directory, write_json, write_text
from snt.deltas import digest_of
from snt.errors import MismatchError, RequestError, unknown_name
from snt.masks import NeuronMask, load_mask, save_mask
from snt.merging import check_target
from snt.patch_algebra import RULES, Conflict, Rule, Slices, as_type, conflicts, scaled, stacked
from snt.patches import Patch, load_directory, save_patch
from snt.report.patching import made_card

_NAMED = 3
_SHARED = ("model", "backend", "dtype", "template", "system_prompt")


@dataclass(frozen=True)
class MadePatch:
    """A patch that was made of others, and `how`; conflicts by the names of the two patches."""

    patch: Path
    how: Mapping[str, Any]
    entries: int
    changed: int
    max_abs_delta: float
    mask: bool
    conflicts: Mapping[str, tuple[Conflict, ...]]
    model: Mapping[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """The report of `snt patch stack --json` and `snt patch scale --json`, also kept."""
        return {
            "patch": self.patch.name,
            "how": dict(self.how),
            "entries": self.entries,
            "changed": self.changed,
            "max_abs_delta": self.max_abs_delta,
            "mask": self.mask,
            "conflicts": {
                names: [asdict(one) for one in found] for names, found in self.conflicts.items()
            },
            "model": self.model,
        }


def patch_stack(
    patches: Sequence[Path], output: Path, *, conflicts: str | None = None, command: str = ""
) -> MadePatch:
    """One patch of two or more of one base model: their ΔW added.

    `conflicts` says what happens to entries that two of them train: "sum" adds them, "first" and
    "last" keep one patch's; None refuses. Raises RequestError for fewer than two patches and for
    conflicts, MismatchError for patches of different base models.
    """
    if len(patches) < 2:
        raise RequestError(f"patch stack needs at least two patches, and {len(patches)} is given")
    if conflicts is not None and conflicts not in RULES:
        raise unknown_name("rule for --conflicts", conflicts, RULES)
    check_target(output)
    held = [load_directory(path) for path in patches]
    for path, one in zip(patches[1:], held[1:], strict=True):
        _check_base(patches[0], held[0], path, one)
    names = _names(patches)
    found = _conflicts(names, held)
    if found and conflicts is None:
        raise RequestError(_said(found))
    rule = cast(Rule, conflicts or "sum")
    # In float64, so that the order of three patches does not matter.
    wide = [as_type(one.slices, torch.float64) for one in held]
    slices = as_type(reduce(lambda x, y: stacked(x, y, rule), wide), torch.float32)
    _check_finite(slices)
    how = {"made": "stack", "patches": list(names), "conflicts": conflicts or "none"}
    return _write(output, held, slices, _masks(patches, held), how, found, command)


def patch_scale(patch: Path, output: Path, *, scale: float, command: str = "") -> MadePatch:
    """A patch with its deltas times `scale`. Raises RequestError for a scale outside 0 to 2."""
    check_target(output)
    held = load_directory(patch)
    slices = scaled(held.slices, scale)
    _check_finite(slices)
    how = {"made": "scale", "patches": list(_names([patch])), "scale": scale}
    return _write(output, [held], slices, _masks([patch], [held]), how, {}, command)


def _write(
    output: Path,
    held: Sequence[Patch],
    slices: Slices,
    mask: NeuronMask | None,
    how: Mapping[str, Any],
    found: Mapping[str, tuple[Conflict, ...]],
    command: str,
) -> MadePatch:
    first = held[0].provenance
    shared = {
        key: first[key]
        for key in _SHARED
        if key in first and all(one.provenance.get(key) == first[key] for one in held)
    }
    parents = [{**one.provenance, "patch_sha256": digest_of(one.slices)} for one in held]
    provenance = {**shared, "made": dict(how), "parents": parents, "snt": __version__}
    patch = Patch(held[0].anatomy, dict(slices), held[0].fingerprint, provenance)
    deltas = [delta for _, delta in slices.values() if delta.numel()]
    model = shared.get("model")
    made = MadePatch(
        output,
        how,
        patch.entries,
        sum(int((delta != 0).sum()) for delta in deltas),
        max((float(delta.abs().max()) for delta in deltas), default=0.0),
        mask is not None,
        found,
        model if isinstance(model, dict) else None,
    )
    with whole_directory(output) as directory:
        save_patch(patch, directory / "patch.safetensors")
        if mask is not None:
            save_mask(mask, directory / "mask.safetensors")
        write_json(directory / "report.json", made.as_json())
        write_text(directory / "command.txt", command + "\n")
        write_text(directory / "README.md", made_card(made.as_json()))
    return made


def _check_base(path: Path, first: Patch, other_path: Path, other: Patch) -> None:
    if other.anatomy != first.anatomy:
        raise MismatchError(
            f"{other_path} is for a model of another shape than {path}: {other.anatomy.shape()} "
            f"and {first.anatomy.shape()}; stack patches of one base model"
        )
    if other.fingerprint != first.fingerprint:
        raise MismatchError(
            f"{other_path} was trained beside other weights than {path} (fingerprint "
            f"{other.fingerprint.weights[:12]} and {first.fingerprint.weights[:12]}); stack "
            "patches of one base model"
        )


def _check_finite(slices: Slices) -> None:
    for key, (_, delta) in slices.items():
        if not bool(torch.isfinite(delta).all()):
            raise RequestError(f"{key}: the deltas are too large for float32; scale them down")


def _conflicts(names: Sequence[str], held: Sequence[Patch]) -> dict[str, tuple[Conflict, ...]]:
    pairs = combinations(zip(names, held, strict=True), 2)
    found = {f"{a} and {b}": conflicts(one.slices, two.slices) for (a, one), (b, two) in pairs}
    return {pair: conflict for pair, conflict in found.items() if conflict}


def _said(found: Mapping[str, tuple[Conflict, ...]]) -> str:
    parts = []
    for pair, all_of_them in found.items():
        shown = "; ".join(map(str, all_of_them[:_NAMED]))
        more = len(all_of_them) - _NAMED
        parts.append(f"{pair}: {shown}" + (f"; and {more} more modules" if more > 0 else ""))
    return (
        f"the patches train the same places. {'. '.join(parts)}. Choose with --conflicts: sum adds "
        "them, first or last keeps one patch's"
    )


def _names(patches: Sequence[Path]) -> list[str]:
    """Folder names, never paths; a number for the same name again."""
    names: list[str] = []
    for path in patches:
        name = path.resolve().name
        again = sum(1 for used in names if used.partition(" (")[0] == name)
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def _masks(patches: Sequence[Path], held: Sequence[Patch]) -> NeuronMask | None:
    """Neurons of any of the patches; None where one of them has no mask beside it."""
    files = [path / "mask.safetensors" for path in patches]
    if not all(file.is_file() for file in files):
        return None
    masks = [load_mask(file) for file in files]
    for file, mask, one in zip(files, masks, held, strict=True):
        if mask.anatomy != one.anatomy:
            raise MismatchError(f"{file} is for another model than the patch beside it")
    if len(masks) == 1:
        return masks[0]
    union = reduce(NeuronMask.union, masks)
    told: list[dict[str, Any]] = [dict(mask.provenance) for mask in masks]
    shared: dict[str, Any] = {
        key: told[0][key]
        for key in ("model", "fingerprint")
        if key in told[0] and all(one.get(key) == told[0][key] for one in told)
    }
    rule = {"rule": "union", "source": "this project's: the neurons of stacked patches"}
    provenance: dict[str, Any] = {
        **shared,
        "selection": rule,
        "parents": told,
        "snt": __version__,
    }
    return NeuronMask(union.anatomy, union.neurons, provenance=provenance)
