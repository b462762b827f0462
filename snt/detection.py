"""`detect`: prompts of two corpora through a model, scores to disk, a mask cut from them.

Source of the idea: Zhao et al., ICLR 2025, section 2; detection in parallel over all neurons after
Zhao et al., How do Large Language Models Handle Multilingualism? (arXiv 2402.18815).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt import __version__, corpora
from snt.anatomy import KINDS
from snt.atomic import check_writable
from snt.corpora import Corpus
from snt.errors import unknown_name
from snt.masks import NeuronMask, save_mask
from snt.memory import peak_bytes
from snt.opening import ModelChoice, OpenModel, open_model
from snt.progress import Progress, Silence
from snt.scores_files import ScoresFile, save_scores, scores_path
from snt.scoring import Detected, detect_scores, group_by_length
from snt.selection_rules import SOURCES, Selection, select

IMPORTANCES = ("exact",)
DEFAULT_SELECT = "budget=1%"


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

    def as_json(self) -> dict[str, Any]:
        """The report of `snt detect --json`."""
        mask = self.mask
        layers = range(mask.anatomy.layers)
        by_layer = [
            {kind: len(mask.neurons.get((layer, kind), ())) for kind in KINDS} for layer in layers
        ]
        model = mask.provenance["model"]
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
        }


def detect(
    model: str | None = None,
    *,
    corpus: str | Corpus = "harmful/detect",
    against: str | Corpus | None = "harmless/detect",
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
    opened: OpenModel | None = None,
    progress: Progress | None = None,
) -> Detection:
    """Find neurons that are important on `corpus` and, by default, less so on `against`.

    Writes the mask to `output` and the scores files beside it. `combine` is none, subtract or
    contrast; left out it is contrast with a second corpus and none without. A model that is
    `opened` already is used as it is. Raises RequestError and its children for what cannot be
    served, RunFailure for an importance that is not finite.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    if importance not in IMPORTANCES:
        raise unknown_name("importance", importance, IMPORTANCES)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
    check_writable(output)
    combine = combine or ("contrast" if against else "none")
    rule = Selection.parse(select_by)
    roles = [("corpus", corpora.load(corpus, offline=offline, progress=progress))]
    if against is not None:
        roles.append(("against", corpora.load(against, offline=offline, progress=progress)))
        corpora.check_same_language(roles[0][1], roles[1][1])
    opened = opened or open_model(
        ModelChoice(model, backend, dtype, system, offline), exact=True, progress=progress
    )
    provenance = {
        **opened.describe(),
        "importance": importance,
        "seed": seed,
        "snt": __version__,
    }
    found = [_score(opened, role, texts, kinds, progress) for role, texts in roles]
    scores = [detected.scores for detected in found]
    chosen, ranked = select(
        opened.model.anatomy,
        scores[0],
        scores[1] if len(scores) > 1 else None,
        rule,
        combine,
        consistency,
        opened.model.parameters,
    )
    described = {role: texts.describe() for role, texts in roles}
    mask = NeuronMask(
        opened.model.anatomy,
        chosen,
        ranked,
        {
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
        file = ScoresFile(
            opened.model.anatomy, one, {**provenance, "corpora": {role: described[role]}}
        )
        save_scores(file, paths[-1])
    save_mask(mask, output)
    return Detection(
        mask,
        output,
        tuple(paths),
        sum(len(texts.texts) for _, texts in roles),
        time.perf_counter() - started,
        sum(detected.forward_seconds for detected in found),
        peak_bytes(),
    )


def _score(
    opened: OpenModel, role: str, texts: Corpus, kinds: Sequence[str], progress: Progress
) -> Detected:
    prompts = [opened.chat.prompt_ids(text) for text in texts.texts]
    batches = group_by_length(prompts, opened.chat.pad_id)
    layers = opened.model.anatomy.layers
    with progress.task(f"importance, {texts.name}", len(prompts), "prompts") as advance:
        return detect_scores(
            opened.model, batches, kinds, lambda prompts_seen: advance(prompts_seen / layers)
        )
