"""`detect`: prompts of two corpora through a model, scores to disk, a mask cut from them.

Source of the idea: Zhao et al., ICLR 2025, section 2; detection in parallel over all neurons after
Zhao et al., How do Large Language Models Handle Multilingualism? (arXiv 2402.18815).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snt import corpora
from snt.anatomy import KINDS
from snt.atomic import check_writable
from snt.corpora import Corpus
from snt.corpus_scoring import HALVES, ScoredSide, Shard, score_sides
from snt.errors import RequestError, unknown_name
from snt.importance.by_name import IMPORTANCES, Importances
from snt.importance.positions import Positions
from snt.mask_cutting import DEFAULT_SELECT, Cut, cut_mask
from snt.masks import NeuronMask, save_mask
from snt.memory import peak_bytes
from snt.opening import ModelChoice, OpenModel, open_model
from snt.preflight import detection_work
from snt.processes import remove_tree
from snt.progress import Progress, Silence
from snt.resuming import unfinished_directory
from snt.scores_files import save_scores
from snt.unfinished import check_resumable
from snt.verification import Verification, verification_path
from snt.verification_arms import VerifySettings
from snt.verified_detection import verify_detection


@dataclass(frozen=True)
class Detection:
    """A mask and what it took to find it; times in seconds, memory in bytes."""

    mask: NeuronMask
    path: Path
    scores: tuple[Path, ...]
    prompts: int
    prompts_dropped: int
    seconds: float
    forward_seconds: float
    peak_bytes: int
    verification: Verification | None = None

    def as_json(self) -> dict[str, Any]:
        """The report of `snt detect --json`."""
        mask = self.mask
        layers = range(mask.anatomy.layers)
        by_layer = [
            {kind: len(mask.neurons.get((layer, kind), ())) for kind in KINDS} for layer in layers
        ]
        model = mask.provenance["model"]
        verified = {"verify": self.verification.as_json()} if self.verification else {}
        return {
            "mask": str(self.path),
            "scores": [str(path) for path in self.scores],
            "model": model,
            "neurons": len(mask),
            "parameters": mask.parameters,
            "parameter_share": mask.parameters / model["parameters"],
            "counts": {"by_kind": mask.counts(), "by_layer": by_layer},
            "shares": {
                "by_kind": {
                    kind: mask.count(kind) / (mask.anatomy.layers * mask.anatomy.size(kind))
                    for kind in KINDS
                },
                "by_layer": [
                    {kind: row[kind] / mask.anatomy.size(kind) for kind in KINDS}
                    for row in by_layer
                ],
            },
            "base_rates": mask.anatomy.base_rates(),
            "prompts": self.prompts,
            "prompts_dropped": self.prompts_dropped,
            "seconds": self.seconds,
            "forward_seconds": self.forward_seconds,
            "peak_bytes": self.peak_bytes,
            **verified,
        }


@dataclass(frozen=True)
class ShardDetection:
    """Scores of a shard of each corpus. A mask is cut when all shards are there."""

    shard: Shard
    scores: tuple[Path, ...]
    prompts: int
    prompts_dropped: int
    seconds: float
    forward_seconds: float
    peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The report of `snt detect --shard --json`."""
        return {
            "mask": None,
            "shard": {"number": self.shard.number, "of": self.shard.of},
            "scores": [str(path) for path in self.scores],
            "prompts": self.prompts,
            "prompts_dropped": self.prompts_dropped,
            "seconds": self.seconds,
            "forward_seconds": self.forward_seconds,
            "peak_bytes": self.peak_bytes,
        }


def detect(
    model: str | None = None,
    *,
    corpus: str | Corpus = "harmful/detect",
    against: str | Corpus | None = "harmless/detect",
    importance: str = "exact",
    positions: str = "all",
    select_by: str = DEFAULT_SELECT,
    consistency: float = 1.0,
    combine: str | None = None,
    kinds: Sequence[str] = KINDS,
    select_against: str | None = None,
    at_most: str | None = None,
    output: Path = Path("mask.safetensors"),
    resume: bool = False,
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    template: str | None = None,
    seed: int = 0,
    offline: bool = False,
    opened: OpenModel | None = None,
    verify: VerifySettings | None = None,
    progress: Progress | None = None,
) -> Detection:
    """Find neurons that are important on `corpus` and, by default, less so on `against`.

    Writes the mask to `output` and the scores files beside it. `combine` is none, subtract or
    contrast; left out it is contrast with a second corpus and none without. `positions` of a prompt
    that count are "all" or "last=N". `select_against` is
    the threshold of what is subtracted, `at_most` limits kinds and layers (`ffn=0.5%,layer=200`).
    A model that is `opened` already is used as it is. `verify` removes the neurons in memory,
    beside controls, and cuts masks from halves of the corpora; its answer may be no, which
    `Detection.verification` tells: nothing is raised for it. A detection that was stopped leaves
    `<output>.unfinished`, and goes on from it with `resume` to the same bytes. Raises RequestError
    and its children for what cannot be served, RunFailure when importances of more than 1% of the
    prompts are not finite.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    cut = Cut.parse(
        against is not None,
        select_by=select_by,
        select_against=select_against,
        combine=combine,
        consistency=consistency,
        kinds=kinds,
        at_most=at_most,
    )
    choice = ModelChoice(model, backend, dtype, system, offline, template=template)
    made = {"importance": importance, "positions": positions, "seed": seed}
    texts = _corpora(made, corpus, against, output, resume, offline, progress)
    if verify is not None:
        check_writable(verification_path(output))
        verify.check_held_out(list(texts.values()), offline)
    if opened is None:
        work = detection_work(texts.values(), importance, verify is not None)
        opened = open_model(choice, exact=True, work=work, progress=progress)
    shards = (None,) if verify is None else HALVES
    found = score_sides(
        opened, texts, cut.kinds, made, output, progress, resume=resume, shards=shards
    )
    whole = [side.whole for side in found]
    for side, named in zip(found, whole, strict=True):
        save_scores(named.file, side.path)
    try:
        mask = cut_mask(cut, *whole)
    except RequestError:
        progress.say(f"the scores are in {found[0].path}; `snt mask from-scores` needs no model")
        remove_tree(unfinished_directory(output))
        raise
    save_mask(mask, output)
    remove_tree(unfinished_directory(output))
    result = Detection(mask, output, *_totals(found, started))
    if verify is None:
        return result
    verification = verify_detection(
        opened, choice, mask, cut, found, made, output, verify, seed, progress
    )
    return replace(result, verification=verification)


def detect_shard(
    model: str | None = None,
    *,
    shard: str,
    corpus: str = "harmful/detect",
    against: str | None = "harmless/detect",
    importance: str = "exact",
    positions: str = "all",
    kinds: Sequence[str] = KINDS,
    output: Path = Path("mask.safetensors"),
    resume: bool = False,
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    template: str | None = None,
    seed: int = 0,
    offline: bool = False,
    progress: Progress | None = None,
) -> ShardDetection:
    """Score part `shard` ("2/3") of each corpus; `snt mask from-scores` merges the parts exactly.

    Writes the scores files that `detect` would write beside `output`, of the shard alone, and no
    mask. Raises as `detect` does, and RequestError for more shards than batches.
    """
    started = time.perf_counter()
    cut = Cut.parse(against is not None, kinds=kinds)
    part = Shard.parse(shard)
    choice = ModelChoice(model, backend, dtype, system, offline, template=template)
    made = {"importance": importance, "positions": positions, "seed": seed}
    progress = progress or Silence()
    texts = _corpora(made, corpus, against, output, resume, offline, progress)
    # Of the whole corpora: what a shard takes in memory, and more than it takes in time.
    work = detection_work(texts.values(), importance)
    opened = open_model(choice, exact=True, work=work, progress=progress)
    found = score_sides(
        opened, texts, cut.kinds, made, output, progress, resume=resume, shards=[part]
    )
    for side in found:
        save_scores(side.parts[0].file, side.path)
    remove_tree(unfinished_directory(output))
    return ShardDetection(part, *_totals(found, started))


def _corpora(
    made: dict[str, Any],
    corpus: str | Corpus,
    against: str | Corpus | None,
    output: Path,
    resume: bool,
    offline: bool,
    progress: Progress,
) -> dict[str, Corpus]:
    """The corpora by role, and everything checked that can be before a model is loaded."""
    if made["importance"] not in IMPORTANCES:
        raise unknown_name("importance", made["importance"], IMPORTANCES)
    Importances(made["importance"], (), Positions.parse(made["positions"]))
    check_writable(output)
    if resume:
        check_resumable(unfinished_directory(output))
    texts = {
        role: corpora.load(reference, offline=offline, progress=progress)
        for role, reference in (("corpus", corpus), ("against", against))
        if reference is not None
    }
    if "against" in texts:
        if texts["corpus"].sha256 == texts["against"].sha256:
            raise RequestError(
                f"the corpus {texts['corpus'].name!r} is on both sides; give another --against"
            )
        corpora.check_same_language(texts["corpus"], texts["against"])
    return texts


def _totals(
    found: Sequence[ScoredSide], started: float
) -> tuple[tuple[Path, ...], int, int, float, float, int]:
    """Paths, prompts, dropped prompts, seconds, forward seconds, peak memory in bytes."""
    parts = [part for side in found for part in side.parts]
    return (
        tuple(side.path for side in found),
        sum(part.prompts for part in parts),
        sum(part.file.provenance["prompts_dropped"] for part in parts),
        time.perf_counter() - started,
        sum(part.forward_seconds for part in parts),
        peak_bytes(),
    )
