"""What can be shared: masks, scores files, patches and recipes, each checked before it travels.

Only files of snt's own formats count: never a pickle, never a script, and of a patch's directory
only the files that snt writes there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from snt.errors import FormatError, MissingFileError, RequestError
from snt.file_facts import MaskFacts, PatchFacts, ScoresFacts
from snt.inspection import inspect_files
from snt.patches import load_directory
from snt.places import names_place
from snt.recipes import load_recipe
from snt.tensor_files import METADATA_KEY

PATCH_FILE: Final = "patch.safetensors"
PATCH_FILES: Final = (PATCH_FILE, "mask.safetensors", "report.json", "command.txt", "README.md")
_CARD: Final = "README.md"
_RECIPES: Final = (".yaml", ".yml")
# Names that every system can hold, and that no pattern or address takes for anything else.
_NAME: Final = r"\w(?:[\w .,+()-]{0,120}[\w+)-])?"
_PLAIN: Final = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_TEXT_LIMIT: Final = 8 << 20


@dataclass(frozen=True)
class SharedFile:
    """One thing to share. `files`: its files by their path in a repository.

    `kind` is mask, scores, patch or recipe; `model` the id of the model it is of, where it says
    one; `facts` one line about it; `place` what a recipe names that lies on this machine alone.
    """

    name: str
    kind: str
    files: Mapping[str, Path]
    model: str | None
    facts: str
    place: str | None = None


def shared_file(path: Path) -> SharedFile:
    """Read and check one thing to share.

    Raises MissingFileError, and FormatError or RequestError for what is damaged, none of the four
    kinds, or named as nothing in a repository can be.
    """
    # A link goes by its own name, not by that of what it leads to.
    name = Path(os.path.abspath(path)).name
    if not _PLAIN.fullmatch(name) or name == _CARD:
        raise RequestError(
            f"{name!r} is no name to share a file by; rename it (letters, digits, -)"
        )
    if not path.exists():
        raise MissingFileError(f"no file or directory {path}")
    if path.suffix in _RECIPES and path.is_file():
        recipe = load_recipe(str(path))
        about = " ".join((recipe.about or recipe.name).split())[:200]
        place = next(filter(names_place, _texts(recipe.model_dump(mode="json"))), None)
        return SharedFile(name, "recipe", {name: path}, recipe.model, about, place)
    if path.is_file() and path.suffix != ".safetensors":
        raise FormatError(
            f"{path} is no mask, scores file, patch directory or recipe; only these are shared"
        )
    (found,) = inspect_files([path]).files
    if isinstance(found, PatchFacts):
        if not path.is_dir():
            raise RequestError(f"{path} is part of a patch; give the directory {path.parent}")
        load_directory(path)
        files = {f"{name}/{one}": path / one for one in PATCH_FILES if (path / one).is_file()}
        _check_texts(files.values())
        tuned = "deltas" if found.mask is None else _mask_line(found.mask)
        return SharedFile(name, "patch", files, _model(found), tuned)
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
    """What a repository's listing holds that can be pulled: name -> its files' paths.

    A patch's first path is its deltas. Raises RequestError when two names differ in case alone,
    which some disks cannot hold.
    """
    # A repository may name its files anything; ours have plain names.
    paths = [PurePosixPath(one) for one in listing if _PLAIN.fullmatch(one)]
    typed = (".safetensors", *_RECIPES)
    patches = {
        one.parts[0]
        for one in paths
        if len(one.parts) == 2 and one.name == PATCH_FILE and not one.parts[0].endswith(typed)
    }
    found: dict[str, list[str]] = {}
    for path in paths:
        if len(path.parts) == 2 and path.parts[0] in patches and path.name in PATCH_FILES:
            found.setdefault(path.parts[0], []).append(str(path))
        elif len(path.parts) == 1 and path.suffix in typed:
            found[path.name] = [path.name]
    for files in found.values():
        files.sort(key=lambda at: not at.endswith(f"/{PATCH_FILE}"))
    clash = clashing(found)
    if clash is not None:
        raise RequestError(
            f"the repository holds {clash[0]!r} and {clash[1]!r}; pull one by its name"
        )
    return dict(sorted(found.items()))


def clashing(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that are the same on a disk that knows no case; None without."""
    folded: dict[str, str] = {}
    for name in names:
        if name.casefold() in folded:
            return folded[name.casefold()], name
        folded[name.casefold()] = name
    return None


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON document, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _check_texts(files: Iterable[Path]) -> None:
    for path in files:
        if path.suffix != ".safetensors" and path.stat().st_size > _TEXT_LIMIT:
            raise FormatError(
                f"{path}: {path.stat().st_size:,} bytes are more than snt writes there"
            )


def _model(found: MaskFacts | ScoresFacts | PatchFacts) -> str | None:
    model = found.provenance.get("model")
    named = model.get("id") if isinstance(model, dict) else None
    return named[:200] if isinstance(named, str) else None


def _mask_line(found: MaskFacts) -> str:
    share = "" if found.parameter_share is None else f", {found.parameter_share:.2%} of the model"
    language = "" if found.language is None else f", found on {found.language}"
    return f"{found.neurons:,} neurons{share}{language}"
