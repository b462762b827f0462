"""Rates and paired differences as they stand in reports."""

from __future__ import annotations

from typing import Any

from snt.evaluation.power import (
    DISCORDANT,
    detectable_beside,
    paired_detectable,
    unpaired_detectable,
)
from snt.evaluation.statistics import PairedDifference, Rate


def rate_json(rate: Rate) -> dict[str, Any]:
    """A rate with its interval for a report, and how large a difference its n would show."""
    return {
        "value": rate.rate,
        "n": rate.n,
        "k": rate.k,
        "interval": [rate.low, rate.high],
        "minimum_detectable_difference": {
            "unpaired": unpaired_detectable(rate.n, rate.rate),
            "paired": paired_detectable(rate.n),
            "paired_discordant": DISCORDANT,
        },
    }


def difference_json(difference: PairedDifference) -> dict[str, Any]:
    """A paired difference for a report."""
    return {
        "difference": difference.difference,
        "interval": [difference.low, difference.high],
        "p": difference.p,
        "gained": difference.gained,
        "lost": difference.lost,
        "n": difference.n,
        "clusters": difference.clusters,
        "minimum_detectable_difference": detectable_beside(
            difference.n, difference.gained, difference.lost
        ),
    }
