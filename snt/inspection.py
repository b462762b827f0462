"""What is in masks, scores files and patches, and how masks overlap: facts, nothing printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.anatomy import Anatomy
from snt.errors import FormatError, MissingFileError, RequestError
from snt.file_facts import MaskFacts, PatchFacts, ScoresFacts, mask_facts, scores_facts
from snt.masks import NeuronMask, load_mask
from snt.overlap import Comparison, Overlap, compare
from snt.scores_files import load_scores
from snt.tensor_files import METADATA_KEY, read_metadata

_MOST_LAYERS = 10_000
_REPORT_LIMIT = 8 << 20


@dataclass(frozen=True)
class Inspection:
    """All files in the order given, and how the masks among them overlap.

    In the comparison masks go by their languages where all say one and no two the same, else by
    the names of their files.
    """

    files: tuple[MaskFacts | ScoresFacts | PatchFacts, ...]
    comparison: Comparison

    @property
    def overlaps(self) -> tuple[Overlap, ...]:
        """The overlap of every two masks."""
        return self.comparison.overlaps

    def as_json(self) -> dict[str, Any]:
        """The report of `snt inspect --json`."""
        return {
            "files": [file.as_json() for file in self.files],
            **self.comparison.as_json(),
        }


def inspect_files(paths: Sequence[str | Path]) -> Inspection:
    """Read masks, scores files and patches (a patch's directory or file), told apart by metadata.

    Raises MissingFileError, FormatError (damaged, or no file of snt), and MismatchError when masks
    of different models are to be compared.
    """
    if not paths:
        raise RequestError("no file to inspect; give masks, scores files or patch directories")
    found: list[MaskFacts | ScoresFacts | PatchFacts] = []
    held: list[tuple[MaskFacts, NeuronMask]] = []
    for name, path in zip(_names([Path(p) for p in paths]), map(Path, paths), strict=True):
        facts, mask = _read(name, path)
        found.append(facts)
        masked = facts.mask if isinstance(facts, PatchFacts) else facts
        if mask is not None and isinstance(masked, MaskFacts):
            held.append((masked, mask))
    languages = [facts.language or "" for facts, _ in held]
    by_language = all(languages) and len(set(languages)) == len(held)
    labels = languages if by_language else [facts.name for facts, _ in held]
    masks = dict(zip(labels, (mask for _, mask in held), strict=True))
    return Inspection(tuple(found), compare(masks))


def _read(name: str, path: Path) -> tuple[MaskFacts | ScoresFacts | PatchFacts, NeuronMask | None]:
    if path.is_dir():
        if not (path / "patch.safetensors").is_file():
            raise MissingFileError(
                f"{path} is a directory without a patch.safetensors; give a patch directory, or "
                "the mask or scores file in it"
            )
        return _patch(name, path / "patch.safetensors")
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; give a mask, a scores file or a patch directory"
        )
    found = _format_of(path)
    if found == "snt-patch":
        return _patch(name, path)
    if found == "snt-scores":
        file = load_scores(path)
        _check_anatomy(path, file.anatomy)
        return scores_facts(name, file), None
    mask = _mask(path)
    return mask_facts(name, mask), mask


def _format_of(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    known = ("snt-mask", "snt-scores", "snt-patch")
    try:
        with safe_open(path, framework="numpy") as file:
            found = json.loads((file.metadata() or {})[METADATA_KEY])["format"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        read_metadata(path, known[0])  # says what is wrong with it
        raise FormatError(f"{path} is damaged; get it again from its author") from None
    if found not in known:
        raise FormatError(
            f"{path} is a {found!r:.80} file; masks, scores files and patches can be inspected"
        )
    return str(found)


def _mask(path: Path) -> NeuronMask:
    mask = load_mask(path)
    _check_anatomy(path, mask.anatomy)
    return mask


def _patch(name: str, path: Path) -> tuple[PatchFacts, NeuronMask | None]:
    metadata = read_metadata(path, "snt-patch")
    beside, report = path.with_name("mask.safetensors"), path.with_name("report.json")
    mask = _mask(beside) if beside.is_file() else None
    derived = ("format", "version", "anatomy")
    facts = PatchFacts(
        name,
        None if mask is None else mask_facts(name, mask),
        _report(report) if report.is_file() else None,
        {key: value for key, value in metadata.items() if key not in derived},
    )
    return facts, mask


def _report(path: Path) -> Mapping[str, Any]:
    size = path.stat().st_size
    if size > _REPORT_LIMIT:
        raise FormatError(f"{path} has {size} bytes, and a report at most {_REPORT_LIMIT}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}; remove it or tune again") from error
    if not isinstance(report, dict):
        raise FormatError(f"{path} holds {type(report).__name__}, not the report of a tuning")
    return report


def _check_anatomy(path: Path, anatomy: Anatomy) -> None:
    if anatomy.layers > _MOST_LAYERS:
        raise FormatError(f"{path}: its metadata describes no model: layers {anatomy.layers}")


def _names(paths: Sequence[Path]) -> Iterable[str]:
    """The shortest endings of the paths that tell them apart; a number for the same path again."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names: list[str] = []
    for mine in parts:
        others = [other for other in parts if other != mine]
        length = 1
        while length < len(mine) and any(other[-length:] == mine[-length:] for other in others):
            length += 1
        name = "/".join(mine[-length:])
        again = sum(1 for used in names if used.partition(" (")[0] == name)
        names.append(f"{name} ({again + 1})" if again else name)
    return names
