"""A mask from scores files: the last step of a detection, and all of `snt mask from-scores`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snt import __version__
from snt.anatomy import KINDS
from snt.errors import FormatError, RequestError, unknown_name
from snt.limits import SOURCE, Limits
from snt.masks import NeuronMask
from snt.scores import Scores
from snt.scores_files import ScoresFile
from snt.scores_merging import NamedScores, check_alike, check_apart
from snt.selection_rules import COMBINATIONS, SOURCES, Selection, check_selection, select

DEFAULT_SELECT = "budget=1%"


@dataclass(frozen=True)
class Cut:
    """How a mask is cut: the rules, read and checked before any work is done."""

    rule: Selection
    combine: str
    consistency: float
    kinds: tuple[str, ...]
    limits: Limits
    rule_against: Selection | None = None

    @classmethod
    def parse(
        cls,
        two_corpora: bool,
        *,
        select_by: str = DEFAULT_SELECT,
        select_against: str | None = None,
        combine: str | None = None,
        consistency: float = 1.0,
        kinds: Sequence[str] = KINDS,
        at_most: str | None = None,
    ) -> Cut:
        """Read the options; `combine` left out is contrast with two corpora and none with one.

        Raises RequestError and UnknownNameError for what cannot be served.
        """
        for kind in kinds:
            if kind not in KINDS:
                raise unknown_name("kind", kind, KINDS)
        if not kinds:
            raise RequestError(f"--kinds names no kind; give some of {', '.join(KINDS)}")
        rule = Selection.parse(select_by)
        other = None if select_against is None else Selection.parse(select_against)
        combine = combine or ("contrast" if two_corpora else "none")
        check_selection(rule, combine, consistency, two_corpora, other)
        return cls(
            rule,
            combine,
            consistency,
            tuple(kind for kind in KINDS if kind in kinds),
            Limits() if at_most is None else Limits.parse(at_most),
            other,
        )

    def describe(self) -> dict[str, Any]:
        """The rules and whose they are, as they stand in the metadata of a mask."""
        selection: dict[str, Any] = {"rule": self.rule.text, "source": SOURCES[self.rule.name]}
        if self.combine != "none":
            selection["combine_source"] = COMBINATIONS[self.combine]
        if self.combine == "subtract":
            other = self.rule_against or self.rule
            selection |= {"against_rule": other.text, "against_source": SOURCES[other.name]}
        if self.limits:
            selection |= {"at_most": self.limits.text, "at_most_source": SOURCE}
        return {
            "selection": selection,
            "consistency": self.consistency,
            "combine": self.combine,
            "kinds": list(self.kinds),
        }


def cut_mask(cut: Cut, first: NamedScores, against: NamedScores | None = None) -> NeuronMask:
    """The mask that `cut` takes from scores of one corpus, or of two.

    Raises MismatchError for two files that do not measure the same, RequestError for a corpus on
    both sides, for kinds that were not scored and for a selection that holds nothing.
    """
    sides = [("corpus", first)] + ([] if against is None else [("against", against)])
    if against is not None:
        check_alike(first, against)
        check_apart(first, against)
    absent = [kind for kind in cut.kinds if kind not in first.file.kinds]
    if absent:
        raise RequestError(
            f"{first.name} has no scores of {', '.join(absent)}, only of "
            f"{', '.join(first.file.kinds)}; give --kinds {','.join(first.file.kinds)}"
        )
    anatomy = first.file.anatomy
    chosen, ranked = select(
        anatomy,
        _of_kinds(first.file, cut.kinds),
        None if against is None else _of_kinds(against.file, cut.kinds),
        cut.rule,
        cut.combine,
        cut.consistency,
        _model_parameters(first),
        select_against=cut.rule_against,
        limits=cut.limits,
    )
    provenance = {
        **first.file.provenance,
        **cut.describe(),
        "corpora": {side: one.file.provenance["corpora"][one.role] for side, one in sides},
        "prompts_dropped": sum(one.file.provenance["prompts_dropped"] for _, one in sides),
        "snt": __version__,
    }
    return NeuronMask(anatomy, chosen, ranked, provenance)


def _of_kinds(file: ScoresFile, kinds: Sequence[str]) -> Scores:
    return Scores({place: held for place, held in file.scores.places.items() if place[1] in kinds})


def _model_parameters(named: NamedScores) -> int:
    """Parameters of the whole model, of which a budget is a share."""
    total = named.file.provenance["model"].get("parameters")
    anatomy = named.file.anatomy
    least = anatomy.layers * sum(anatomy.size(k) * anatomy.neuron_parameters(k) for k in KINDS)
    if type(total) is not int or total < least:
        raise FormatError(
            f"{named.name}: its metadata says that the model has {total!r:.80} parameters, and its "
            f"neurons alone have {least}; detect again"
        )
    return total
