"""`--verify`: a mask's neurons removed in memory, beside those of random and matched masks.

The question of method section "does the mask do what it says" (Zhao et al., ICLR 2025, ask it with
random neurons): held-out prompts, every arm on the same ones, one verdict.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snt import __version__
from snt.atomic import check_writable, write_json
from snt.errors import NegativeResult
from snt.evaluation.completions import Completion, write_completions
from snt.evaluation.paired_means import mean_of
from snt.evaluation.perplexity import perplexity_interval, relative_change
from snt.evaluation.refusal_odds import coverage, tree_of
from snt.evaluation.statistics import Rate
from snt.evaluation.statistics_json import rate_json
from snt.evaluation.verdict import Verdict, changes, judge_arms
from snt.masks import NeuronMask, load_mask
from snt.memory import peak_bytes
from snt.opening import ModelChoice, OpenModel, named_model, open_model
from snt.preflight import Work
from snt.progress import Progress, Silence
from snt.scores import Scores
from snt.scores_files import load_scores, scores_path
from snt.stability import Stability
from snt.verification_arms import PROMPTS, Arm, VerifySettings, controls_of, measure_arm


@dataclass(frozen=True)
class Verification:
    """Every arm, the first untouched and the second without the mask's neurons, and the verdict.

    `stability` is None where a mask was verified without the halves of its detection.
    """

    arms: tuple[Arm, ...]
    verdict: Verdict
    stability: Stability | None
    path: Path
    settings: VerifySettings
    description: Mapping[str, Any]
    seconds: float
    peak_bytes: int

    @property
    def completions(self) -> Path:
        """Where the replies of every arm are."""
        return self.path.with_suffix(".jsonl")

    def check(self) -> None:
        """Raises NegativeResult with the verdict when the effect is not specific."""
        if not self.verdict.specific:
            raise NegativeResult(self.verdict.sentence)

    def as_json(self) -> dict[str, Any]:
        """The `verify` object of `snt detect --json`, and the content of the report file."""
        before = self.arms[0]
        refusals = [
            row.response
            for row in before.measured.completions
            if row.suite == "non_refusal" and row.label == "refusal"
        ]
        openings = self.settings.openings
        return {
            **self.description,
            "arms": {arm.name: self._arm_json(arm) for arm in self.arms},
            **self.verdict.as_json(),
            "openings": {
                "texts": list(openings),
                "begin": coverage(refusals, openings),
                "of_refusals": len(refusals),
            },
            "stability": self.stability.as_json() if self.stability else None,
            "curve": [point.as_json() for point in self.stability.curve] if self.stability else [],
            "report": str(self.path),
            "completions": str(self.completions),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }

    def _arm_json(self, arm: Arm) -> dict[str, Any]:
        before = self.arms[0]
        change, low, high = relative_change(before.perplexity, arm.perplexity)
        rates = arm.measured.rates
        document: dict[str, Any] = {
            "neurons": len(arm.mask) if arm.mask else 0,
            "parameters": arm.mask.parameters if arm.mask else 0,
            "refusal": rate_json(Rate.of_outcomes(arm.refused)),
            "over_refusal": rate_json(rates["over_refusal"]),
            "harmless_refusal": rate_json(rates["harmless_refusal"]),
            "perplexity": {
                "value": arm.perplexity.value,
                "n": len(arm.perplexity.tokens),
                "interval": list(perplexity_interval(arm.perplexity)),
                "change": {"value": change, "interval": [low, high]},
            },
            "refusal_log_odds": {},
        }
        for name, values in arm.log_odds.items():
            moved = mean_of(changes(before.log_odds[name], values))
            document["refusal_log_odds"][name] = {
                **mean_of(values).as_json(),
                "change": {"value": moved.mean, "interval": [moved.low, moved.high]},
            }
        apart = arm.change(before).difference
        document["refusal_log_odds"]["harmful_minus_harmless_change"] = {
            "value": apart.mean,
            "interval": [apart.low, apart.high],
        }
        return document


def verify(
    mask: Path,
    model: str | None = None,
    *,
    settings: VerifySettings | None = None,
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    seed: int = 0,
    offline: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Verify a mask that was detected before, with the scores files that lie beside it.

    `detect(verify=...)` does the same right after a detection and adds the stability. Raises
    MissingFileError where the scores of either corpus are not there, MismatchError for another
    model's mask.
    """
    settings = settings or VerifySettings()
    settings.check(offline)
    held = load_mask(mask)
    own, against = (load_scores(scores_path(mask, against=second)) for second in (False, True))
    choice = ModelChoice(model, backend, dtype, system, offline)
    work = Work(("score", "generate", "patch"))
    opened = open_model(choice, named=named_model(held), work=work, progress=progress)
    warning = opened.check_mask(held)
    if warning and progress is not None:
        progress.say(f"warning: {warning}")
    described = dict(against.provenance.get("corpora") or {}).get("against")
    return verify_mask(
        opened,
        held,
        own.scores,
        against.scores,
        output=mask,
        settings=settings,
        foundation=described if isinstance(described, dict) else {},
        seed=seed,
        progress=progress,
    )


def verify_mask(
    opened: OpenModel,
    mask: NeuronMask,
    scores: Scores,
    against: Scores,
    *,
    output: Path,
    settings: VerifySettings,
    foundation: Mapping[str, Any],
    seed: int = 0,
    stability: Stability | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Measure every arm on an open model and write the report beside `output`, the mask's file.

    `against` are the scores of the corpus whose consistently important neurons are the foundation,
    and `foundation` says which corpus that is.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    path = verification_path(output)
    check_writable(path)
    chosen = settings.check(opened.offline)
    tree = tree_of(opened.chat, settings.openings)
    prompts = {name: chosen[metric].texts for metric, name in PROMPTS.items()}
    removed = controls_of(mask, scores, against, settings.draws, seed)
    arms: list[Arm] = []
    for name, without in removed:
        progress.say(f"arm {len(arms) + 1} of {len(removed)}: {name}")
        arms.append(measure_arm(opened, name, without, settings, tree, prompts, progress))
    before, *others = arms
    verdict = judge_arms(
        others[0].change(before), [arm.change(before) for arm in others[1:]], before.refused
    )
    result = Verification(
        tuple(arms),
        verdict,
        stability,
        path,
        settings,
        {
            **opened.describe(),
            "corpora": {metric: corpus.describe() for metric, corpus in chosen.items()},
            "foundation_corpus": dict(foundation),
            "judge": settings.judge,
            "generation": settings.suites().generation(),
            "draws": settings.draws,
            "seed": seed,
            "snt": __version__,
        },
        time.perf_counter() - started,
        peak_bytes(),
    )
    write_completions(result.completions, _rows(arms))
    write_json(path, result.as_json())
    return result


def verification_path(mask_path: Path) -> Path:
    """`m.safetensors` -> `m.verify.json`."""
    return mask_path.with_name(f"{mask_path.name.removesuffix('.safetensors')}.verify.json")


def _rows(arms: Sequence[Arm]) -> list[Completion]:
    """Every reply of every arm, each with its prompt's refusal log-odds."""
    rows = []
    for arm in arms:
        odds = {name: iter(values) for name, values in arm.log_odds.items()}
        for row in arm.measured.completions:
            found = {"arm": arm.name, "refusal_log_odds": next(odds[PROMPTS[str(row.suite)]])}
            rows.append(replace(row, extra={**row.extra, **found}))
    return rows
