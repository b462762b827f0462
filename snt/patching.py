"""`snt patch`: the workflows around patch directories and the models they are merged into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snt.atomic import whole_directory, write_json, write_text
from snt.checkpoint_dtype import dtype_named
from snt.deltas import digest_of
from snt.errors import MismatchError, RequestError
from snt.merging import ApplyReport, apply_patch, check_target
from snt.opening import ModelChoice, named_model, resolve_choice
from snt.patch_algebra import Comparison, compared, scaled
from snt.patches import Patch, load_directory
from snt.peft_export import above_served, exported, ranks
from snt.progress import Progress, Silence
from snt.report.patching import adapter_card
from snt.tensor_files import write_weights
from snt.unmerging import RevertReport, revert_patch

FORMATS = ("peft",)


@dataclass(frozen=True)
class AppliedPatch:
    """A merged model and what rounding kept of the patch."""

    model: Path
    base: str
    forced: bool
    scale: float
    report: ApplyReport

    def as_json(self) -> dict[str, Any]:
        """The report of `snt patch apply --json`."""
        told = asdict(self.report)
        kept = told.pop("kept")
        return {
            "model": str(self.model),
            "base": self.base,
            "forced": self.forced,
            "scale": self.scale,
            **kept,
            **told,
        }


@dataclass(frozen=True)
class RevertedPatch:
    """A model without the patch that it held."""

    model: Path
    report: RevertReport

    def as_json(self) -> dict[str, Any]:
        """The report of `snt patch revert --json`."""
        return {"model": str(self.model), **asdict(self.report)}


@dataclass(frozen=True)
class PatchDifference:
    """Two patches compared, by module name and under "all"."""

    names: tuple[str, str]
    same_base: bool
    modules: Mapping[str, Comparison]

    def as_json(self) -> dict[str, Any]:
        """The report of `snt patch diff --json`."""
        return {
            "patches": list(self.names),
            "same_base": self.same_base,
            "modules": {name: asdict(part) for name, part in self.modules.items()},
        }


@dataclass(frozen=True)
class ExportedPatch:
    """An adapter directory; `ranks` by module name as they are in its files, `bytes` of them."""

    adapter: Path
    base: str
    revision: str | None
    rank: int
    uniform: bool
    ranks: Mapping[str, int]
    bytes: int
    warning: str | None

    def as_json(self) -> dict[str, Any]:
        """The report of `snt patch export --json`."""
        return {**asdict(self), "adapter": str(self.adapter), "modules": len(self.ranks)}


def patch_apply(
    patch: Path,
    output: Path,
    *,
    model: str | None = None,
    scale: float = 1.0,
    dtype: str = "auto",
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> AppliedPatch:
    """Merge the patch of a patch directory into its base model.

    `scale` 0 to 2 times the deltas; `dtype` of the weights written, "auto" for the checkpoint's.
    Raises MissingFileError when `patch` holds none, MismatchError for another model,
    NegativeResult when nothing of the patch survives rounding.
    """
    held = load_directory(patch)
    written = dtype_named(dtype)
    if scale != 1:
        held = _replaced(held, scale)
    choice = ModelChoice(model, offline=offline)
    resolved = resolve_choice(choice, named_model(held), progress or Silence())
    report = apply_patch(
        held, resolved.directory, output, force=force, dtype=written, progress=progress
    )
    return AppliedPatch(output, resolved.id, force, scale, report)


def patch_revert(model: Path, output: Path) -> RevertedPatch:
    """Take a patch out of a merged model directory, every weight file bit for bit."""
    return RevertedPatch(output, revert_patch(model, output))


def patch_diff(first: Path, second: Path) -> PatchDifference:
    """Compare two patches of models of one shape. Raises MismatchError for two shapes."""
    one, two = load_directory(first), load_directory(second)
    if one.anatomy != two.anatomy:
        raise MismatchError(
            f"{first} is for a model of another shape than {second}: {one.anatomy.shape()} and "
            f"{two.anatomy.shape()}; compare patches of one model"
        )
    names = (first.resolve().name, second.resolve().name)
    return PatchDifference(
        names, one.fingerprint == two.fingerprint, compared(one.slices, two.slices)
    )


def patch_export(
    patch: Path,
    output: Path,
    *,
    format: str = "peft",
    base: str | None = None,
    uniform_rank: bool = False,
) -> ExportedPatch:
    """Write the patch as a LoRA adapter directory that `peft` loads.

    `base` is the model id written into it, by default the one that the patch names;
    `uniform_rank` pads every module to one rank that servers allow. Raises RequestError for
    another format, a name that is no id, and a rank that cannot be padded.
    """
    if format not in FORMATS:
        raise RequestError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    check_target(output)
    held = load_directory(patch)
    name = base or named_model(held)
    if name is None:
        raise RequestError(f"{patch} does not say which model it is for; give its id with --base")
    revision = _revision(held) if base is None else None
    adapter = exported(held, name, revision, uniform=uniform_rank)
    needed = {f"layers.{at[0]}.{at[1]}": rank for at, rank in ranks(held.slices).items()}
    with whole_directory(output) as directory:
        write_weights(directory / "adapter_model.safetensors", adapter.tensors)
        write_json(directory / "adapter_config.json", dict(adapter.config))
        size = (directory / "adapter_model.safetensors").stat().st_size
        made = ExportedPatch(
            output,
            name,
            revision,
            adapter.rank,
            uniform_rank,
            adapter.ranks,
            size,
            above_served(needed),
        )
        card = adapter_card(made.as_json(), digest_of(held.slices), _card(patch))
        write_text(directory / "README.md", card)
    return made


def _replaced(held: Patch, scale: float) -> Patch:
    return Patch(held.anatomy, scaled(held.slices, scale), held.fingerprint, held.provenance)


def _revision(held: Patch) -> str | None:
    model = held.provenance.get("model")
    revision = model.get("revision") if isinstance(model, dict) else None
    return revision if isinstance(revision, str) else None


def _card(patch: Path) -> str:
    """The text of a patch's card, without what stands above it for machines; empty without one."""
    file = patch / "README.md"
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8", errors="replace")
    head, between, rest = text.partition("\n---\n")
    return rest if between and head.startswith("---") else text
