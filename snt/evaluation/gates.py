"""Gates: conditions under which an evaluation fails, such as `over_refusal > 0.1`.

    [difference.]METRIC[.low|.high] OP NUMBER

OP is <, <=, > or >=; NUMBER may be a percentage. A rate is a fraction from 0 to 1, its difference
a fraction from -1 to 1; `difference.perplexity` is relative. `.low` and `.high` are the ends of
the 95% interval: `over_refusal.low > 10%` fails only where the prompts are enough to be sure.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from snt.errors import NegativeResult, RequestError, unknown_name

_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FORM: Final = re.compile(
    r"\s*(?P<name>[A-Za-z][\w.:/-]*)\s*(?P<operator><=|>=|<|>)\s*"
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(?P<percent>%?)\s*"
)
DIFFERENCE: Final = "difference."
_ENDS: Final = ("low", "high")


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95% interval, as gates read it; not every figure has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gate:
    """A condition on one figure. `text` is how it was written."""

    text: str
    metric: str
    of_difference: bool
    end: str | None
    operator: str
    limit: float

    @property
    def figure(self) -> str:
        """The figure's name: `over_refusal`, `difference.perplexity`."""
        return (DIFFERENCE if self.of_difference else "") + self.metric

    def met(self, figure: Figure | None) -> bool:
        """Whether the condition, which is one of failure, holds.

        What was not measured, or has no such end, fails: a gate that cannot be read is not passed.
        """
        value: float | None = getattr(figure, self.end or "value", None)
        return value is None or _OPERATORS[self.operator](value, self.limit)


@dataclass(frozen=True)
class GateResult:
    """A gate on one model's figure. `met` means that the evaluation fails."""

    gate: Gate
    model: str
    figure: Figure | None
    met: bool

    @property
    def sentence(self) -> str:
        """Which gate, whose figure, its value and interval."""
        shown = _percents if self._as_percent else _plain
        start = f"{self.model}: {self.gate.text!r}"
        if self.figure is None:
            return f"{start} cannot be read: {self.gate.figure} was not measured"
        value = f"{self.gate.figure} is {shown(self.figure.value)}"
        if self.figure.low is None or self.figure.high is None:
            return f"{start} {'cannot be read' if self.gate.end else 'holds'}: {value}, no interval"
        low, high = shown(self.figure.low), shown(self.figure.high)
        return f"{start} holds: {value} (95% {low} to {high})"

    @property
    def _as_percent(self) -> bool:
        return self.gate.of_difference or self.gate.metric != "perplexity"

    def as_json(self) -> dict[str, Any]:
        """The gate as written, the model, the figure and whether the gate is met."""
        return {
            "gate": self.gate.text,
            "model": self.model,
            "figure": self.gate.figure,
            "value": None if self.figure is None else self.figure.value,
            "interval": None if self.figure is None else [self.figure.low, self.figure.high],
            "met": self.met,
        }


def parse_gate(text: str) -> Gate:
    """Read `[difference.]METRIC[.low|.high] OP NUMBER`. Raises RequestError with the form."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise RequestError(
            f"{text!r} is no gate: write [difference.]METRIC[.low|.high] OP NUMBER, as in "
            "'over_refusal > 0.1' or 'difference.perplexity.high >= 2%'; OP is <, <=, > or >="
        )
    limit = float(form["number"]) / (100 if form["percent"] else 1)
    if not math.isfinite(limit):
        raise RequestError(f"{text!r}: the number is beyond what a float holds; give a smaller one")
    name = form["name"]
    of_difference = name.startswith(DIFFERENCE)
    name = name.removeprefix(DIFFERENCE)
    stem, dot, end = name.rpartition(".")
    ends = dot and end in _ENDS
    return Gate(
        text.strip(),
        stem if ends else name,
        of_difference,
        end if ends else None,
        form["operator"],
        limit,
    )


def parse_gates(
    texts: Iterable[str],
    measured: Iterable[str],
    known: Iterable[str],
    baseline: bool,
    tasks: bool = False,
) -> tuple[Gate, ...]:
    """Gates checked against what will be measured, so that none is found unfit afterwards.

    `measured` are the metrics of the chosen suites, `known` those of all suites. With `tasks` of
    lm-eval, whose metrics it names itself, any TASK.METRIC may be one of them. Raises
    UnknownNameError with the nearest names, RequestError for a metric that is not measured and for
    a difference without a baseline.
    """
    measured, known = tuple(measured), tuple(known)
    gates = tuple(parse_gate(text) for text in texts)
    for gate in gates:
        if tasks and "." in gate.metric and gate.metric.partition(".")[0] not in known:
            continue
        if gate.metric not in {*measured, *known}:
            raise unknown_name("metric of a gate", gate.metric, {*measured, *known})
        if gate.metric not in measured:
            raise RequestError(
                f"the gate {gate.text!r} is on {gate.metric}, which is not measured; add its suite "
                f"to --suite or leave the gate out (measured: {', '.join(measured)})"
            )
        if gate.of_difference and not baseline:
            raise RequestError(
                f"the gate {gate.text!r} is on a difference; give the model to compare with as "
                "--baseline"
            )
    return gates


def check_gates(
    gates: Sequence[Gate], figures: Mapping[str, Mapping[str, Figure]]
) -> tuple[GateResult, ...]:
    """Every gate on every model; `figures` are by model and figure name.

    The model that others are compared with has no differences, and no gate is on them there.
    """
    results = []
    for gate in gates:
        holding = [model for model, held in figures.items() if gate.figure in held]
        for model in holding or figures:
            figure = figures[model].get(gate.figure)
            results.append(GateResult(gate, model, figure, gate.met(figure)))
    return tuple(results)


def raise_if_met(results: Iterable[GateResult]) -> None:
    """Raises NegativeResult (exit 3) that names every gate that was met."""
    met = [result.sentence for result in results if result.met]
    if met:
        raise NegativeResult("failed by its gate: " + "; ".join(met))


def _percents(value: float) -> str:
    return f"{100 * value:.1f}%"


def _plain(value: float) -> str:
    return f"{value:.2f}"
