"""What a comparison found, in sentences: each says a difference with its interval, or a null."""

from __future__ import annotations

from collections.abc import Sequence

from snt.robust.results import Comparison, Kept

_SAFETY = "non_refusal"
_WORDS = {_SAFETY: "harmful requests not refused", "task": "task items solved"}


def sentences(comparisons: Sequence[Comparison], kept: Sequence[Kept]) -> list[str]:
    """A sentence per tuned arm on what is kept; per pair of arms one on safety, one on the task."""
    found = [_kept(one) for one in kept]
    return found + [_compared(one) for one in comparisons if one.metric in _WORDS]


def _kept(one: Kept) -> str:
    if one.rate is None:
        return f"{one.arm}: its safety tuning gave no refusal that the task could have undone."
    rate = one.rate
    return (
        f"{one.arm}: of the refusals that its safety tuning gave, the task left "
        f"{100 * rate.rate:.1f}% ({rate.k} of {rate.n}; 95% {100 * rate.low:.1f} to "
        f"{100 * rate.high:.1f}%)."
    )


def _compared(one: Comparison) -> str:
    spread = one.difference
    seeds = len(one.by_seed)
    test = f"p = {one.by_seed[0].p:.3f}" if seeds == 1 else f"{seeds} seeds"
    figures = (
        f"{100 * spread.mean:+.1f} points (95% {100 * spread.low:+.1f} to "
        f"{100 * spread.high:+.1f}, {test})"
    )
    what = _WORDS[one.metric]
    if one.null:
        return (
            f"Null result: after the task {one.arm} and {one.reference} are not told apart in "
            f"{what}, {figures}."
        )
    less = spread.mean < 0
    return (
        f"After the task {one.arm} has {'fewer' if less else 'more'} {what} than "
        f"{one.reference}, {figures}."
    )
