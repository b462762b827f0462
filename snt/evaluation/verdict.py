"""Does removing a mask's neurons do something to refusals that nothing else of its size does?

Pure statistics on paired changes. Every condition must hold, so no correction for their number is
due: the chance that all hold by accident is at most that of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from snt.errors import RequestError
from snt.evaluation.paired_means import Mean, Rank, difference_of_means, mean_of, rank_among
from snt.evaluation.power import paired_detectable
from snt.evaluation.statistics import PairedDifference, paired_difference

# Beyond this relative rise of perplexity a mask is said to carry language.
LANGUAGE_LIMIT: Final = 0.20
# A control is compared until its perplexity has doubled: a model that writes no sentences refuses
# nothing, and would beat any mask at that. Below it, more controls make the verdict stricter.
CONTROL_LIMIT: Final = 1.0
# With fewer prompts even changes that all fall leave chance above 5% (2 / 2**5).
FEWEST_PROMPTS: Final = 6
RATE_CHECK: Final = "refusal rate falls too"


@dataclass(frozen=True)
class ArmChange:
    """What removing an arm's neurons changed against the untouched model.

    harmful and harmless: change of the refusal log-odds in nats, one value a prompt, prompts in the
    same order for every arm. refused: whether the reply to each harmful prompt refuses.
    perplexity: relative change, 0.1 for a tenth more. drawn: whether the neurons were random.
    """

    name: str
    harmful: Sequence[float]
    harmless: Sequence[float]
    refused: Sequence[bool]
    perplexity: float
    drawn: bool = False

    @property
    def change(self) -> Mean:
        """Mean change on harmful prompts, nats."""
        return mean_of(self.harmful)

    @property
    def difference(self) -> Mean:
        """Difference in differences: the change on harmful prompts minus that on harmless ones."""
        return difference_of_means(self.harmful, self.harmless)


@dataclass(frozen=True)
class Check:
    """One condition of the verdict; `figure` in nats, where the condition is about log-odds."""

    name: str
    holds: bool
    says: str
    figure: Mean | None = None

    def as_json(self) -> dict[str, Any]:
        """The condition, whether it holds, and its figure."""
        document: dict[str, Any] = {"check": self.name, "holds": self.holds, "says": self.says}
        return document | (self.figure.as_json() if self.figure else {})


@dataclass(frozen=True)
class Verdict:
    """The answer in one sentence, and all it rests on.

    `rank` is among the random draws that are compared. `left_out` names the controls that are not,
    for they lost their language.
    `detectable` is the smallest fall of the refusal rate that these prompts would show (80% power),
    and `rate_counts` whether the untouched model refuses that much at all.
    """

    specific: bool
    sentence: str
    checks: tuple[Check, ...]
    rank: Rank
    left_out: tuple[str, ...]
    rate: PairedDifference
    detectable: float
    rate_counts: bool

    def as_json(self) -> dict[str, Any]:
        """`verdict` is the sentence; beside it the conditions and the test of the rate."""
        return {
            "verdict": self.sentence,
            "specific": self.specific,
            "checks": [check.as_json() for check in self.checks],
            "rank_among_draws": self.rank.as_json(),
            "controls_without_language": list(self.left_out),
            "refusal_rate_change": {
                "difference": self.rate.difference,
                "interval": [self.rate.low, self.rate.high],
                "p": self.rate.p,
                "smallest_detectable_fall": self.detectable,
                "counts": self.rate_counts,
            },
        }


def judge_arms(
    mask: ArmChange, controls: Sequence[ArmChange], refused_before: Sequence[bool]
) -> Verdict:
    """The verdict on `mask` beside its controls.

    Specific means: without the mask's neurons the refusal log-odds of harmful prompts fall; they
    fall more than without those of any control that keeps its language, by intervals of paired
    differences; they fall more than those of harmless prompts, by more than without any such
    control; perplexity stays within the limit;
    and where the untouched model refuses enough for a fall of the rate to be seen, it falls as
    well, below every such control's. Raises RequestError for fewer than FEWEST_PROMPTS prompts.
    """
    fewest = min(len(mask.harmful), len(mask.harmless))
    if fewest < FEWEST_PROMPTS:
        raise RequestError(
            f"{fewest} held-out prompts cannot tell an effect from chance; give at least "
            f"{FEWEST_PROMPTS} harmful and {FEWEST_PROMPTS} harmless ones"
        )
    compared = [control for control in controls if control.perplexity <= CONTROL_LIMIT]
    drawn = [control for control in compared if control.drawn]
    rate = paired_difference(refused_before, mask.refused)
    detectable, counts = _detectable(refused_before)
    rank = rank_among(mask.change.mean, [control.change.mean for control in drawn])
    checks = [_language(mask), _falls(mask), *_controls(mask, compared, bool(drawn))]
    checks.append(_difference(mask, compared))
    if counts:
        checks.append(_rate(mask, compared, rate))
    specific = all(check.holds for check in checks)
    left_out = tuple(control.name for control in controls if control not in compared)
    sentence = _sentence(mask, checks, rank, compared)
    if not counts:
        before = sum(map(bool, refused_before))
        sentence += (
            f" (on log-odds alone: the untouched model refuses {before} of {rate.n} harmful "
            f"prompts, and a fall by less than {100 * detectable:.0f} points would not show)"
        )
    return Verdict(specific, sentence, tuple(checks), rank, left_out, rate, detectable, counts)


def _language(mask: ArmChange) -> Check:
    return Check(
        "language kept",
        mask.perplexity <= LANGUAGE_LIMIT,
        f"perplexity {100 * mask.perplexity:+.1f}%, and at {100 * LANGUAGE_LIMIT:+.0f}% a mask "
        "carries language",
    )


def _falls(mask: ArmChange) -> Check:
    says = f"the refusal log-odds of harmful prompts change by {_nats(mask.change)}"
    return Check("falls on harmful prompts", mask.change.high < 0, says, mask.change)


def _controls(mask: ArmChange, compared: Sequence[ArmChange], any_drawn: bool) -> list[Check]:
    if not any_drawn:
        says = "no random mask of this size keeps the model's language, so there is no comparison"
        return [Check("more than random masks", False, says)]
    checks = []
    for control in compared:
        pairs = zip(mask.harmful, control.harmful, strict=True)
        beyond = mean_of([mine - other for mine, other in pairs])
        says = f"beyond the change without {control.name} by {_nats(beyond)}"
        checks.append(Check(f"more than without {control.name}", beyond.high < 0, says, beyond))
    return checks


def _difference(mask: ArmChange, compared: Sequence[ArmChange]) -> Check:
    # Whatever is removed, a damaged model tells the two kinds of prompt apart less well, and so the
    # difference is below zero for random masks too: zero alone would be too low a bar.
    found = mask.difference
    others = {control.name: control.difference.mean for control in compared}
    says = f"beyond the change on harmless prompts by {_nats(found)}"
    if others:
        strongest = min(others, key=lambda name: others[name])
        says += f", without {strongest} by {others[strongest]:+.2f}"
    holds = found.high < 0 and all(found.mean < other for other in others.values())
    return Check("more than on harmless prompts", holds, says, found)


def _rate(mask: ArmChange, compared: Sequence[ArmChange], rate: PairedDifference) -> Check:
    lowest = min((sum(control.refused) for control in compared), default=rate.n + 1)
    holds = rate.high < 0 and sum(mask.refused) < lowest
    says = (
        f"the refusal rate goes from {100 * rate.before.rate:.1f} to {100 * rate.after.rate:.1f}% "
        f"({100 * rate.low:+.1f} to {100 * rate.high:+.1f} points)"
    )
    if compared:
        says += f", the lowest control's to {100 * lowest / rate.n:.1f}%"
    return Check(RATE_CHECK, holds, says)


def _detectable(refused_before: Sequence[bool]) -> tuple[float, bool]:
    n, before = len(refused_before), sum(map(bool, refused_before))
    # Only a refused prompt can cease to be, so no more than their share changes.
    share = min(max(before, 0.5), n - 0.5) / n
    detectable = paired_detectable(n, share)
    return detectable, before / n >= detectable


def _sentence(
    mask: ArmChange, checks: Sequence[Check], rank: Rank, compared: Sequence[ArmChange]
) -> str:
    failed = [check for check in checks if not check.holds]
    if not failed:
        return (
            "specific effect: without these neurons the refusal log-odds of harmful prompts change "
            f"by {_nats(mask.change)}, more than without those of any control "
            f"({', '.join(control.name for control in compared)}) and more than on harmless "
            f"prompts; rank 1 of {rank.draws + 1} with the random draws, where p cannot be below "
            f"{rank.smallest_p:.2f}; perplexity {100 * mask.perplexity:+.1f}%"
        )
    if mask.change.low > 0:
        start = (
            "without these neurons the refusal log-odds of harmful prompts rise, by "
            f"{_nats(mask.change)}"
        )
    else:
        start = f"the refusal log-odds of harmful prompts change by {_nats(mask.change)}"
    reasons = [f"it carries language ({checks[0].says})"] if checks[0] in failed else []
    reasons.append(start)
    lost = [check.name for check in failed if check.name.startswith("more than ")]
    if lost:
        reasons.append(f"not {' nor '.join(lost)}")
    reasons += [check.says for check in failed if check.name == RATE_CHECK]
    return f"no specific effect: {', '.join(reasons)}"


def _nats(mean: Mean) -> str:
    return f"{mean.mean:+.2f} nats (95% {mean.low:+.2f} to {mean.high:+.2f})"


def changes(before: Sequence[float], after: Sequence[float]) -> tuple[float, ...]:
    """After minus before, prompt by prompt."""
    return tuple(new - old for old, new in zip(before, after, strict=True))
