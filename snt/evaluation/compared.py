"""One model of an evaluation beside the one it is compared with, and its figures for gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snt.evaluation.comparison import compare, perplexity_change
from snt.evaluation.gates import DIFFERENCE, Figure
from snt.evaluation.measurement import Measurement
from snt.evaluation.power import change_detectable
from snt.evaluation.seeds import Origin
from snt.evaluation.statistics import PairedDifference
from snt.evaluation.statistics_json import difference_json

_LONGEST_NAME = 40


@dataclass(frozen=True)
class ComparedModel:
    """What a further model did on the same prompts, and how that differs from the reference."""

    name: str
    model: str
    measured: Measurement
    differences: Mapping[str, PairedDifference]
    perplexity_change: tuple[float, float, float] | None
    description: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    @classmethod
    def beside(
        cls,
        reference: Measurement,
        measured: Measurement,
        name: str,
        model: str,
        description: Mapping[str, Any],
        origin: Origin | None,
    ) -> ComparedModel:
        """`measured` compared with `reference`. Raises RequestError where the prompts differ."""
        return cls(
            name,
            model,
            measured,
            compare(reference, measured),
            perplexity_change(reference, measured),
            description,
            origin,
        )

    def as_json(self, completions: Path) -> dict[str, Any]:
        """Its part of the report; `completions` is where its replies are."""
        return {
            "name": self.name,
            "model": self.model,
            **self.description,
            "metrics": self.measured.as_json(),
            "differences": differences_json(self.differences, self.perplexity_change),
            "completions": str(completions),
            "replies_reused": self.measured.reused,
            "seed": None if self.origin is None else self.origin.seed,
        }


def differences_json(
    differences: Mapping[str, PairedDifference], perplexity: tuple[float, float, float] | None
) -> dict[str, Any]:
    """Differences by metric for a report; that of perplexity is relative."""
    document: dict[str, Any] = {
        metric: difference_json(found) for metric, found in differences.items()
    }
    if perplexity is not None:
        change, low, high = perplexity
        document["perplexity"] = {
            "relative": change,
            "interval": [low, high],
            "minimum_detectable_difference": change_detectable(low, high),
        }
    return document


def figures_of(
    metrics: Mapping[str, Mapping[str, Any]], differences: Mapping[str, Mapping[str, Any]]
) -> dict[str, Figure]:
    """The figures that a gate may be on, by name, from a report's metrics and differences."""
    found = {
        metric: Figure(entry["value"], *(entry.get("interval") or ()))
        for metric, entry in metrics.items()
    }
    return found | {
        f"{DIFFERENCE}{metric}": Figure(
            entry["relative" if "relative" in entry else "difference"],
            *(entry.get("interval") or ()),
        )
        for metric, entry in differences.items()
    }


def figures_by_model(report: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """The figures of every model of a report but the baseline, by its name."""
    models = [report, *report.get("compared", ())]
    return {one["name"]: figures_of(one["metrics"], one.get("differences", {})) for one in models}


def split_name(reference: str) -> tuple[str | None, str]:
    """`NAME=MODEL` taken apart; a directory with an equals sign in its name stays whole."""
    name, equals, ref = reference.partition("=")
    if not equals or not name or not ref or Path(reference).exists():
        return None, reference
    return name, ref


def short_name(model: str, patch: Path | None) -> str:
    """What tables call a model: a patch by its directory's name, another by its id without owner.

    Never a path, and short enough for a table's first column.
    """
    name = patch.resolve().name if patch is not None else model.rpartition("/")[2]
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return plain if len(plain) <= _LONGEST_NAME else plain[: _LONGEST_NAME - 1] + "…"
