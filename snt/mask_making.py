"""`snt mask`: masks from scores files, from other masks and from others' files, without a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from snt import __version__
from snt.anatomy import KINDS
from snt.atomic import check_writable
from snt.errors import FormatError, RequestError
from snt.file_facts import mask_facts
from snt.mask_cutting import DEFAULT_SELECT, Cut, cut_mask
from snt.masks import NeuronMask, load_mask, save_mask
from snt.opening import ModelChoice, resolve_choice
from snt.progress import Progress
from snt.published_masks import DEFAULT_AXIS, check_axis, imported, read_published
from snt.random_masks import random_like
from snt.scores_files import load_scores, save_scores, scores_path
from snt.scores_merging import NamedScores, merged


@dataclass(frozen=True)
class MadeMask:
    """A mask that was written; `scores` are the merged scores files beside it, if any."""

    mask: NeuronMask
    path: Path
    scores: tuple[Path, ...] = ()
    warning: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The report of `snt mask … --json`: counts, shares and base rates as `detect` gives."""
        facts = mask_facts(self.path.name, self.mask).as_json()
        told = ("neurons", "parameters", "parameter_share", "counts", "shares", "base_rates")
        return {
            "mask": str(self.path),
            "scores": [str(path) for path in self.scores],
            "model": self.mask.provenance.get("model"),
            "warning": self.warning,
            **{key: facts[key] for key in told},
        }


def mask_from_scores(
    scores: Sequence[Path],
    *,
    against: Sequence[Path] = (),
    select_by: str = DEFAULT_SELECT,
    select_against: str | None = None,
    consistency: float = 1.0,
    combine: str | None = None,
    kinds: Sequence[str] | None = None,
    at_most: str | None = None,
    output: Path,
) -> MadeMask:
    """Cut a mask from scores files of one corpus, or of one `against` another.

    Several files of a side are merged: shards of a corpus, or different corpora; the merged scores
    are then written beside the mask, as a detection writes them. From all shards of a detection
    come its bytes. `kinds` left out are those that were scored. Raises RequestError and children
    for files that do not belong together and for what `detect` refuses, TooManyDropped when more
    than 1% of the prompts were dropped.
    """
    check_writable(output)
    sides = [_merged(scores)] + ([_merged(against)] if against else [])
    cut = Cut.parse(
        bool(against),
        select_by=select_by,
        select_against=select_against,
        combine=combine,
        consistency=consistency,
        kinds=sides[0].file.kinds if kinds is None else kinds,
        at_most=at_most,
    )
    mask = cut_mask(cut, *sides)
    inputs = {path.resolve() for path in (*scores, *against)}
    beside = []
    for given, side, second in zip((scores, against), sides, (False, True), strict=False):
        if len(given) > 1:
            path = scores_path(output, against=second)
            if path.resolve() in inputs:
                raise RequestError(
                    f"the merged scores would overwrite {path}, which was given; choose another -o"
                )
            beside.append((path, side.file))
    for path, file in beside:
        save_scores(file, path)
    save_mask(mask, output)
    return MadeMask(mask, output, tuple(path for path, _ in beside))


def mask_union(masks: Sequence[Path], output: Path) -> MadeMask:
    """Neurons of any of the masks. Raises RequestError for fewer than two or different models."""
    return _combined("union", NeuronMask.union, masks, output)


def mask_intersect(masks: Sequence[Path], output: Path) -> MadeMask:
    """Neurons of all of the masks. Raises RequestError for fewer than two or different models."""
    return _combined("intersect", NeuronMask.intersect, masks, output)


def mask_subtract(masks: Sequence[Path], output: Path) -> MadeMask:
    """Neurons of the first mask that are in none of the others. Raises as `mask_union` does."""
    return _combined("subtract", NeuronMask.subtract, masks, output)


def mask_random(mask: Path, output: Path, *, seed: int = 0) -> MadeMask:
    """As many neurons of every layer and kind as `mask` has, drawn at random."""
    check_writable(output)
    drawn = random_like(load_mask(mask), seed)
    save_mask(drawn, output)
    return MadeMask(drawn, output)


def mask_import(
    file: Path,
    output: Path,
    *,
    model: str | None = None,
    kv_axis: str = DEFAULT_AXIS,
    offline: bool = False,
    progress: Progress | None = None,
) -> MadeMask:
    """A mask from a neuron file of the published code, for the model that it is of.

    `kv_axis` as `published_masks.published_mask` says. Raises RequestError and children for a file
    that is none, and for a model that is not to be had or that the indices do not fit.
    """
    check_axis(kv_axis)
    check_writable(output)
    if output.exists() and output.samefile(file):
        raise RequestError(f"the mask would replace {file}, which it is made of; choose another -o")
    found = read_published(file)
    resolved = resolve_choice(ModelChoice(model, offline=offline), progress=progress)
    try:
        mask = imported(found, resolved, kv_axis)
    except FormatError as error:
        raise FormatError(f"{file}: {error}") from error
    save_mask(mask, output)
    left, told = found.only_down, []
    if left:
        told.append(
            f"down_proj names {left:,} that up_proj does not; left out, for a feed-forward neuron "
            "is counted by its row of up_proj"
        )
    if mask.anatomy.group > 1 and kv_axis != "rows" and found.may_be_rows(mask.anatomy):
        told.append(
            "no key or value index is beyond the projections' own rows, as they would be on the "
            "repeated axis; if they are rows, import again with --kv-axis rows"
        )
    return MadeMask(mask, output, warning="; ".join(told) or None)


def _combined(
    name: str,
    operation: Callable[[NeuronMask, NeuronMask], NeuronMask],
    paths: Sequence[Path],
    output: Path,
) -> MadeMask:
    if len(paths) < 2:
        raise RequestError(f"mask {name} needs at least two masks, and {len(paths)} is given")
    check_writable(output)
    masks = [load_mask(path) for path in paths]
    result = reduce(operation, masks)
    told = [mask.provenance for mask in masks]
    shared = {
        key: told[0][key]
        for key in ("model", "fingerprint")
        if key in told[0] and all(one.get(key) == told[0][key] for one in told)
    }
    rule = {"rule": name, "source": "this project's: a mask made of masks"}
    provenance = {
        **shared,
        "selection": rule,
        "kinds": [kind for kind in KINDS if result.count(kind)],
        "parents": [dict(one) for one in told],
        "snt": __version__,
    }
    mask = NeuronMask(result.anatomy, result.neurons, provenance=provenance)
    save_mask(mask, output)
    return MadeMask(mask, output, warning=_other_weights(paths, masks))


def _other_weights(paths: Sequence[Path], masks: Sequence[NeuronMask]) -> str | None:
    prints = [mask.provenance.get("fingerprint") for mask in masks]
    other = next((i for i, one in enumerate(prints) if one != prints[0]), None)
    if other is None:
        return None
    return (
        f"{paths[0].name} and {paths[other].name} were found on other weights of the same shape; "
        "fine for a model and its fine-tune"
    )


def _merged(paths: Sequence[Path]) -> NamedScores:
    return merged([NamedScores(path.name, load_scores(path)) for path in paths])
