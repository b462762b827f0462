"""What can be shared: masks, scores files, patches and recipes, each checked before it travels.

Only files of snt's own formats count: never a pickle, never a script, and of a patch's directory
only the files that snt writes there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from safetensors import SafetensorError, safe_open

from snt.errors import FormatError, MissingFileError, RequestError
from snt.file_facts import MaskFacts, PatchFacts, ScoresFacts
from snt.inspection import inspect_files
from snt.recipes import load_recipe

PATCH_FILES: Final = (
    "patch.safetensors",
    "mask.safetensors",
    "report.json",
    "command.txt",
    "README.md",
)
_RECIPES: Final = (".yaml", ".yml")
# Of paths in a repository that may hold any of these.
PATTERNS: Final = ("*.safetensors", "*.yaml", "*.yml", *(f"*/{name}" for name in PATCH_FILES))
METADATA_KEY: Final = "snt"
_PLAIN: Final = re.compile(r"(?:\w[\w .+-]*/)?\w[\w .+-]*")


@dataclass(frozen=True)
class SharedFile:
    """One thing to share. `files`: its files by their path in a repository.

    `kind` is mask, scores, patch or recipe; `model` the id of the model it is of, where it says
    one; `facts` one line about it.
    """

    name: str
    kind: str
    files: Mapping[str, Path]
    model: str | None
    facts: str


def shared_file(path: Path) -> SharedFile:
    """Read and check one thing to share.

    Raises MissingFileError, and FormatError for what is damaged or none of the four kinds.
    """
    name = path.resolve().name
    if path.suffix in _RECIPES and path.is_file():
        recipe = load_recipe(str(path))
        return SharedFile(name, "recipe", {name: path}, recipe.model, recipe.about or recipe.name)
    if not path.exists():
        raise MissingFileError(f"no file or directory {path}")
    if path.is_file() and path.suffix != ".safetensors":
        raise FormatError(
            f"{path} is no mask, scores file, patch directory or recipe; only these are shared"
        )
    (found,) = inspect_files([path]).files
    if isinstance(found, PatchFacts):
        if not path.is_dir():
            raise RequestError(f"{path} is part of a patch; give the directory {path.parent}")
        files = {f"{name}/{one}": path / one for one in PATCH_FILES if (path / one).is_file()}
        return SharedFile(name, "patch", files, _model(found), _patch_line(found))
    if isinstance(found, ScoresFacts):
        line = f"{found.prompts} prompts, {found.neurons:,} neurons scored"
        return SharedFile(name, "scores", {name: path}, _model(found), line)
    return SharedFile(name, "mask", {name: path}, _model(found), _mask_line(found))


def is_ours(path: Path) -> bool:
    """Whether a file says that snt wrote it. Weights of a model do not."""
    if path.suffix != ".safetensors":
        return True
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except SafetensorError:
        return False


def names_in(listing: Iterable[str]) -> dict[str, list[str]]:
    """What a repository's listing holds that can be pulled: name -> its files' paths."""
    # A repository may name its files anything; ours have plain names.
    paths = [PurePosixPath(one) for one in listing if _PLAIN.fullmatch(one)]
    patches = {one.parts[0] for one in paths if len(one.parts) == 2 and one.name == PATCH_FILES[0]}
    found: dict[str, list[str]] = {}
    for path in paths:
        if len(path.parts) == 2 and path.parts[0] in patches and path.name in PATCH_FILES:
            found.setdefault(path.parts[0], []).append(str(path))
        elif len(path.parts) == 1 and path.suffix in (".safetensors", *_RECIPES):
            found[path.name] = [path.name]
    return dict(sorted(found.items()))


def _model(found: MaskFacts | ScoresFacts | PatchFacts) -> str | None:
    model = found.provenance.get("model")
    named = model.get("id") if isinstance(model, dict) else None
    return named if isinstance(named, str) else None


def _mask_line(found: MaskFacts) -> str:
    share = "" if found.parameter_share is None else f", {found.parameter_share:.2%} of the model"
    language = "" if found.language is None else f", found on {found.language}"
    return f"{found.neurons:,} neurons{share}{language}"


def _patch_line(found: PatchFacts) -> str:
    tuned = "" if found.mask is None else _mask_line(found.mask)
    return tuned or "deltas"
