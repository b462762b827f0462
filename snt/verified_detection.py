"""A detection verified at once: its two halves, and the model that it has open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from snt import corpora
from snt.backend import get_backend
from snt.corpus_scoring import ScoredSide, score_sides
from snt.mask_cutting import Cut, cut_mask
from snt.masks import NeuronMask
from snt.memory import release
from snt.opening import ModelChoice, OpenModel
from snt.processes import remove_tree
from snt.progress import Progress
from snt.resuming import unfinished_directory
from snt.scores import Scores
from snt.scores_merging import NamedScores
from snt.selection_rules import Selection
from snt.stability import Half, Stability, stability_of
from snt.verification import Verification, verify_mask
from snt.verification_arms import VerifySettings

# Whose consistently important neurons are the foundation control where no second corpus is given.
FOUNDATION_CORPUS = "harmless/detect"


def verify_detection(
    opened: OpenModel,
    choice: ModelChoice,
    mask: NeuronMask,
    cut: Cut,
    sides: Sequence[ScoredSide],
    made: Mapping[str, Any],
    output: Path,
    settings: VerifySettings,
    seed: int,
    progress: Progress,
) -> Verification:
    """Stability from the halves of `sides`, then every arm measured; the report beside `output`.

    Measures in the precision that is fast here, unless `choice` names one. Raises as `verify_mask`.
    """
    stability = _stability(cut, sides, opened.model.parameters)
    whole = [side.whole.file for side in sides]
    foundation = sides[-1].texts
    if len(sides) == 1:
        foundation = corpora.load(FOUNDATION_CORPUS, offline=opened.offline)
        progress.say(f"no second corpus: the foundation control is found on {foundation.name}")
        against = {"against": foundation}
        try:
            (other,) = score_sides(opened, against, cut.kinds, made, output, progress)
        finally:
            # The mask is written: what is unfinished here belongs to no detection to resume.
            remove_tree(unfinished_directory(output))
        whole.append(other.whole.file)
    backend = get_backend(opened.backend)
    if choice.dtype == "auto" and backend.fast_dtype() != opened.model.dtype:
        # Ranks want float32; replies and odds take the precision that is fast here.
        directory = opened.resolved.directory
        opened = replace(opened, model=backend.load(directory, backend.fast_dtype()))
        release()
    return verify_mask(
        opened,
        mask,
        whole[0].scores,
        whole[1].scores,
        output=output,
        settings=settings,
        foundation=foundation.describe(),
        seed=seed,
        stability=stability,
        progress=progress,
    )


def _stability(cut: Cut, sides: Sequence[ScoredSide], parameters: int) -> Stability:
    named = [side.whole for side in sides]

    def cut_by(first: Scores, second: Scores | None, rule: Selection) -> NeuronMask:
        parts = [first] if second is None else [first, second]
        files = [
            NamedScores(one.name, replace(one.file, scores=scores))
            for one, scores in zip(named, parts, strict=True)
        ]
        return cut_mask(replace(cut, rule=rule), *files)

    def half(number: int) -> Half:
        return Half(*_pair([side.parts[number].file.scores for side in sides]))

    whole = Half(*_pair([one.file.scores for one in named]))
    return stability_of(cut_by, whole, (half(0), half(1)), cut.rule, parameters)


def _pair(scores: Sequence[Scores]) -> tuple[Scores, Scores | None]:
    return scores[0], scores[1] if len(scores) > 1 else None
