"""What a comparison found, in sentences: each difference with its interval, all nulls as nulls."""

from __future__ import annotations

from collections.abc import Sequence

from snt.robust.results import Comparison, Kept

WORDS = {"non_refusal": "harmful requests not refused", "task": "task items solved"}


def sentences(comparisons: Sequence[Comparison], kept: Sequence[Kept]) -> list[str]:
    """A sentence per tuned arm on what is kept; then, by metric, one per difference, one of nulls.

    Differences are those on harmful requests and on the task, after the task.
    """
    found = [_kept(one) for one in kept]
    for metric, words in WORDS.items():
        mine = [one for one in comparisons if one.metric == metric]
        found += [_difference(one, words) for one in mine if not one.null]
        nulls = [f"{one.arm} and {one.reference}" for one in mine if one.null]
        if nulls:
            found.append(
                f"Null result: after the task no difference in {words} was found between "
                f"{'; '.join(nulls)}."
            )
    return found


def _kept(one: Kept) -> str:
    if one.rate is None:
        return f"{one.arm}: its safety tuning gave no refusal that the task could have undone."
    rate = one.rate
    return (
        f"{one.arm}: of the refusals that its safety tuning gave, {100 * rate.rate:.1f}% are there "
        f"after the task ({rate.k} of {rate.n}; 95% {100 * rate.low:.1f} to "
        f"{100 * rate.high:.1f}%)."
    )


def _difference(one: Comparison, words: str) -> str:
    spread, seeds = one.difference, len(one.by_seed)
    test = f"McNemar p = {one.by_seed[0].p:.2g}" if seeds == 1 else f"{seeds} seeds"
    return (
        f"After the task {one.arm} has {'fewer' if spread.mean < 0 else 'more'} {words} than "
        f"{one.reference}: {100 * spread.mean:+.1f} points (95% {100 * spread.low:+.1f} to "
        f"{100 * spread.high:+.1f}; {test})."
    )
