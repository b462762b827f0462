"""What a comparison of places holds fixed, and what differs from arm to arm."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from snt.errors import RequestError
from snt.evaluation.settings import Settings
from snt.place_arms import CONTROLS, LOCATED
from snt.training import Schedule

BUDGETS = ("0.01%", "0.03%", "0.1%", "0.3%", "1%")
RULES = (*LOCATED, *CONTROLS)
SCALES = (0.5, 0.75, 1.0)
ODDS_LIMIT = 120
REFERENCE_SHARE = 0.01


@dataclass(frozen=True)
class PlaceSettings:
    """What is compared and how every arm is trained and measured.

    `draws` masks of each random rule. `scales` of the trained deltas, 1 among them, give the curve
    of replies; the refusal log-odds of the first `odds_limit` prompts of each corpus give another,
    over every threshold, from one forward pass.
    `schedule` has the learning rate of a mask of 1% of the model; see `rate_for`.
    """

    budgets: tuple[str, ...] = BUDGETS
    rules: tuple[str, ...] = RULES
    draws: int = 3
    scales: tuple[float, ...] = SCALES
    data: str = "refusals/tune"
    retain: tuple[str, ...] = ("harmless/tune", "lookalike/tune")
    positions: int = 5
    schedule: Schedule = field(default_factory=Schedule)
    evaluate: Settings = field(default_factory=Settings)
    odds_limit: int = ODDS_LIMIT

    def check(self) -> None:
        """Raises RequestError for settings that no comparison can be made of."""
        if self.draws < 1:
            raise RequestError(f"{self.draws} random draws; give at least 1")
        if 1.0 not in self.scales or not all(0.0 < scale <= 2.0 for scale in self.scales):
            raise RequestError(f"scales {self.scales}: each is in (0, 2], and 1 is among them")

    def as_json(self) -> dict[str, Any]:
        """All of it, as it stands in the report."""
        return asdict(self)


def rate_for(learning_rate: float, masked: int, parameters: int) -> float:
    """The learning rate of a mask of `masked` out of `parameters` entries.

    Adam moves every entry by about the learning rate, so that a mask's whole step grows with the
    root of its size. Masks of every size get steps of the length that one of 1% has at
    `learning_rate`: with one rate for all, small masks would hardly move in the same steps.
    """
    return float(learning_rate * (REFERENCE_SHARE * parameters / masked) ** 0.5)
