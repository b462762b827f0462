"""`detect`: prompts of two corpora through a model, scores to disk, a mask cut from them.

Source of the idea: Zhao et al., ICLR 2025, section 2; detection in parallel over all neurons after
Zhao et al., How do Large Language Models Handle Multilingualism? (arXiv 2402.18815).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from snt import __version__, corpora
from snt.anatomy import KINDS
from snt.atomic import check_writable
from snt.backend import Batch, get_backend
from snt.corpora import Corpus
from snt.errors import unknown_name
from snt.masks import NeuronMask, save_mask
from snt.memory import peak_bytes, release
from snt.opening import ModelChoice, OpenModel, open_model
from snt.progress import Progress, Silence
from snt.scores import Scores
from snt.scores_files import ScoresFile, save_scores, scores_path
from snt.scoring import Detected, detect_scores, group_by_length
from snt.selection_rules import SOURCES, Selection, select
from snt.stability import Half, deal, stability_of
from snt.verification import Verification, verification_path, verify_mask
from snt.verification_arms import VerifySettings

IMPORTANCES = ("exact",)
DEFAULT_SELECT = "budget=1%"
# Whose consistently important neurons are the foundation control where no second corpus is given.
FOUNDATION_CORPUS = "harmless/detect"


@dataclass(frozen=True)
class Detection:
    """A mask and what it took to find it; times in seconds, memory in bytes."""

    mask: NeuronMask
    path: Path
    scores: tuple[Path, ...]
    prompts: int
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
            "seconds": self.seconds,
            "forward_seconds": self.forward_seconds,
            "peak_bytes": self.peak_bytes,
            **verified,
        }


def detect(
    model: str | None = None,
    *,
    corpus: str = "harmful/detect",
    against: str | None = "harmless/detect",
    importance: str = "exact",
    select_by: str = DEFAULT_SELECT,
    consistency: float = 1.0,
    combine: str | None = None,
    kinds: Sequence[str] = KINDS,
    output: Path = Path("mask.safetensors"),
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    seed: int = 0,
    offline: bool = False,
    verify: VerifySettings | None = None,
    progress: Progress | None = None,
) -> Detection:
    """Find neurons that are important on `corpus` and, by default, less so on `against`.

    Writes the mask to `output` and the scores files beside it. `combine` is none, subtract or
    contrast; left out it is contrast with a second corpus and none without. `verify` removes the
    neurons in memory, beside controls, and cuts masks from halves of the corpora; its answer may be
    no, which `Detection.verification` tells: nothing is raised for it. Raises RequestError and its
    children for what cannot be served, RunFailure for an importance that is not finite.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    if importance not in IMPORTANCES:
        raise unknown_name("importance", importance, IMPORTANCES)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    check_writable(output)
    if verify is not None:
        check_writable(verification_path(output))
    combine = combine or ("contrast" if against else "none")
    rule = Selection.parse(select_by)
    roles = [("corpus", corpora.load(corpus, offline=offline, progress=progress))]
    if against is not None:
        roles.append(("against", corpora.load(against, offline=offline, progress=progress)))
    if verify is not None:
        verify.check_held_out([texts for _, texts in roles], offline)
    choice = ModelChoice(model, backend, dtype, system, offline)
    opened = open_model(choice, exact=True, progress=progress)
    provenance = {
        **opened.describe(),
        "importance": importance,
        "seed": seed,
        "snt": __version__,
    }
    found = [
        _score(opened, texts, kinds, progress, halves=verify is not None) for _, texts in roles
    ]
    scores = [_together(parts) for parts in found]
    anatomy, parameters = opened.model.anatomy, opened.model.parameters

    def cut(first: Scores, second: Scores | None, by: Selection) -> NeuronMask:
        return NeuronMask(
            anatomy, *select(anatomy, first, second, by, combine, consistency, parameters)
        )

    mask = cut(scores[0], scores[1] if len(scores) > 1 else None, rule)
    described = {role: texts.describe() for role, texts in roles}
    mask = replace(
        mask,
        provenance={
            **provenance,
            "selection": {"rule": rule.text, "source": SOURCES[rule.name]},
            "consistency": consistency,
            "combine": combine,
            "kinds": [kind for kind in KINDS if kind in kinds],
            "corpora": described,
            "prompts_dropped": 0,
        },
    )
    paths = []
    for (role, _), one in zip(roles, scores, strict=True):
        paths.append(scores_path(output, against=role == "against"))
        file = ScoresFile(anatomy, one, {**provenance, "corpora": {role: described[role]}})
        save_scores(file, paths[-1])
    save_mask(mask, output)
    result = Detection(
        mask,
        output,
        tuple(paths),
        sum(len(texts.texts) for _, texts in roles),
        time.perf_counter() - started,
        sum(detected.forward_seconds for parts in found for detected in parts),
        peak_bytes(),
    )
    if verify is None:
        return result
    first, second = (
        Half(found[0][n].scores, found[1][n].scores if against else None) for n in (0, 1)
    )
    whole = Half(scores[0], scores[1] if against else None)
    stability = stability_of(cut, whole, (first, second), rule, parameters)
    foundation = roles[-1][1]
    if against is None:
        foundation = corpora.load(FOUNDATION_CORPUS, offline=offline)
        progress.say(f"no second corpus: the foundation control is found on {foundation.name}")
        scores.append(_together(_score(opened, foundation, kinds, progress, halves=False)))
    if dtype == "auto" and get_backend(opened.backend).fast_dtype() != opened.model.dtype:
        # Ranks want float32; replies and odds take the precision that is fast here.
        del opened
        release()
        opened = open_model(choice, progress=progress)
    verification = verify_mask(
        opened,
        mask,
        scores[0],
        scores[1],
        output=output,
        settings=verify,
        foundation=foundation.describe(),
        seed=seed,
        stability=stability,
        progress=progress,
    )
    return replace(result, verification=verification)


def _score(
    opened: OpenModel, texts: Corpus, kinds: Sequence[str], progress: Progress, halves: bool
) -> list[Detected]:
    """Scores of a corpus, of each half of its batches apart where `halves` are wanted."""
    prompts = [opened.chat.prompt_ids(text) for text in texts.texts]
    # Batches are planned over the whole corpus: halves merge to what one pass gives, to the bit.
    batches = group_by_length(prompts, opened.chat.pad_id)
    parts: Sequence[Sequence[Batch]] = deal(batches) if halves else [batches]
    layers = opened.model.anatomy.layers
    with progress.task(f"importance, {texts.name}", len(prompts), "prompts") as advance:
        return [
            detect_scores(opened.model, part, kinds, lambda seen: advance(seen / layers))
            for part in parts
        ]


def _together(parts: Sequence[Detected]) -> Scores:
    return reduce(Scores.merge, (part.scores for part in parts))
