"""`patch apply` and `patch revert`: the workflows around a patch and a model directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from snt.errors import MissingFileError
from snt.merging import apply_patch, revert_patch
from snt.opening import ModelChoice, named_model, resolve_choice
from snt.patches import load_patch
from snt.progress import Progress, Silence


def apply(
    patch: Path,
    output: Path,
    *,
    model: str | None = None,
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge the patch of a patch directory into its base model; returns the report.

    Raises MissingFileError when `patch` holds none, MismatchError for another model.
    """
    file = patch / "patch.safetensors"
    if not file.is_file():
        raise MissingFileError(f"{patch} holds no patch.safetensors; give the folder of `snt tune`")
    held = load_patch(file)
    choice = ModelChoice(model, offline=offline)
    resolved = resolve_choice(choice, named_model(held), progress or Silence())
    report = apply_patch(held, resolved.directory, output, force=force)
    return {"model": str(output), "base": resolved.id, "forced": force, **asdict(report)}


def revert(model: Path, output: Path) -> dict[str, Any]:
    """Take a patch out of a merged model directory; returns the report."""
    return {"model": str(output), **asdict(revert_patch(model, output))}
