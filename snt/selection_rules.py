"""Selections by name, as `--select` writes them: `budget=1%`, `epsilon=0.5`, `topk=ffn:64`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from snt.anatomy import KINDS, Anatomy
from snt.errors import RequestError, unknown_name
from snt.limits import Limits
from snt.scores import Place, Scores
from snt.selection import (
    above,
    check_consistency,
    consistency_order,
    contrast_order,
    first_ranks,
    subtract,
    within_budget,
    within_limits,
)

SOURCES: Mapping[str, str] = {
    "budget": "this project's: solved for the rank",
    "epsilon": "the paper's: importance at least epsilon on every prompt",
    "topk": "the released code's: among the first k of its layer and kind on every prompt",
}
COMBINATIONS: Mapping[str, str] = {
    "none": "this corpus alone",
    "subtract": "the paper's: N_safe without N_foundation, each at its own threshold (RSN-Tune)",
    "contrast": "this project's: ordered by the effect size between two corpora",
}
_FORMS = "budget=0.5%, budget=100000 (parameters), epsilon=0.1 or topk=ffn:2000,attn:1000"


@dataclass(frozen=True)
class Selection:
    """A named rule. budget: a fraction of the model, or parameters; epsilon; ranks per kind."""

    text: str
    name: str
    fraction: float | None = None
    parameters: int | None = None
    epsilon: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Read `name=value`. Raises RequestError with the forms, UnknownNameError for the name."""
        name, equals, value = text.partition("=")
        if name not in SOURCES:
            raise unknown_name("selection", name, SOURCES, f"Write {_FORMS}.")
        if not equals:
            raise _malformed(text)
        if name == "topk":
            return cls(text, name, ranks=_ranks(text, value))
        if name == "budget" and re.fullmatch(r"[0-9]+", value):
            return cls(text, name, parameters=int(value))
        number = _number(text, value.removesuffix("%") if name == "budget" else value)
        if name == "epsilon":
            return cls(text, name, epsilon=number)
        if not value.endswith("%") or not 0 < number <= 100:
            raise _malformed(text)
        return cls(text, name, fraction=number / 100)

    def budget(self, model_parameters: int) -> int:
        """Parameters that the mask may hold; `model_parameters` is the size of the whole model."""
        if self.fraction is not None:
            return int(self.fraction * model_parameters)
        return self.parameters or 0


def select(
    anatomy: Anatomy,
    scores: Scores,
    against: Scores | None,
    selection: Selection,
    combine: str,
    consistency: float,
    model_parameters: int,
    *,
    select_against: Selection | None = None,
    limits: Limits | None = None,
) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
    """Neurons per place, and a float32 score per chosen neuron (higher is more characteristic).

    `select_against` is the threshold of what is subtracted, left out the same as `selection`.
    `limits` hold for `selection` alone: a smaller foundation would make a larger mask. Raises
    RequestError for a combination that the selection or the corpora cannot serve, and for a
    selection that holds nothing.
    """
    check_selection(selection, combine, consistency, against is not None, select_against)
    limits = limits or Limits()
    if combine == "contrast" and against is not None:
        order = contrast_order(scores, against)
    else:
        order = consistency_order(scores, consistency)
    chosen = _chosen(anatomy, scores, order, selection, consistency, model_parameters, limits)
    if combine == "subtract" and against is not None:
        others = _chosen(
            anatomy,
            against,
            consistency_order(against, consistency),
            select_against or selection,
            consistency,
            model_parameters,
            Limits(),
        )
        chosen = subtract(chosen, others)
    if not chosen:
        at_most = f" and --at-most {limits.text}" if limits else ""
        raise RequestError(
            f"--select {selection.text} with --combine {combine}{at_most} leaves no neuron; "
            "widen it"
        )
    return chosen, {place: -order[place][kept.long()].float() for place, kept in chosen.items()}


def check_selection(
    selection: Selection,
    combine: str,
    consistency: float,
    two_corpora: bool,
    select_against: Selection | None = None,
) -> None:
    """Raise RequestError, before any work, for what `select` could not serve."""
    if combine not in COMBINATIONS:
        raise unknown_name("combination", combine, COMBINATIONS)
    if combine != "none" and not two_corpora:
        raise RequestError(f"--combine {combine} needs a second corpus; give --against CORPUS")
    if combine == "contrast" and selection.name != "budget":
        raise RequestError(
            f"--combine contrast orders neurons by effect size and takes --select budget=…, not "
            f"{selection.text}; use --combine subtract or none"
        )
    if select_against is not None and combine != "subtract":
        raise RequestError(
            f"--select-against {select_against.text} says what --combine subtract takes away, and "
            f"this is --combine {combine}; leave it out"
        )
    check_consistency(consistency)
    if consistency == 1.0:
        return
    if combine == "contrast" or "epsilon" in (
        selection.name,
        select_against and select_against.name,
    ):
        reason = "contrast weighs all prompts" if combine == "contrast" else "epsilon has no ranks"
        raise RequestError(
            f"--consistency {consistency} asks on how many prompts a rank holds, and {reason}; "
            "leave it out, or use budget or topk with --combine none or subtract"
        )


def _chosen(
    anatomy: Anatomy,
    scores: Scores,
    order: Mapping[Place, Tensor],
    selection: Selection,
    consistency: float,
    model_parameters: int,
    limits: Limits,
) -> dict[Place, Tensor]:
    if selection.name == "budget":
        return within_budget(anatomy, order, selection.budget(model_parameters), limits)
    if selection.epsilon is not None:
        chosen = above(scores, selection.epsilon)
    else:
        chosen = first_ranks(scores, selection.ranks, consistency)
    return within_limits(anatomy, order, chosen, limits) if limits else chosen


def _ranks(text: str, value: str) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for part in value.split(","):
        kind, _, number = part.partition(":")
        if not re.fullmatch(r"[0-9]+", number) or kind not in (*KINDS, "attn"):
            raise _malformed(text)
        for one in ("q", "k", "v") if kind == "attn" else (kind,):
            ranks[one] = int(number)
    return ranks


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise _malformed(text) from None
    if not 0 <= number < float("inf"):
        raise _malformed(text)
    return number


def _malformed(text: str) -> RequestError:
    return RequestError(f"--select {text!r} is no selection; write {_FORMS}")
