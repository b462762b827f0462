"""Gates: a tiny grammar, checked before anything runs, and an answer that names its figure."""

from __future__ import annotations

import pytest

from snt.errors import NegativeResult, RequestError, UnknownNameError
from snt.evaluation.gates import Figure, Gate, check_gates, parse_gate, parse_gates, raise_if_met
from snt.report.evaluation_figures import gate_cells

KNOWN = ("non_refusal", "over_refusal", "harmless_refusal", "perplexity")


@pytest.mark.parametrize(("text", "gate"), [
    ("over_refusal > 0.1", ("over_refusal", False, None, ">", 0.1)),
    ("over_refusal>10%", ("over_refusal", False, None, ">", 0.1)),
    (" over_refusal.low >= 5 % ", ("over_refusal", False, "low", ">=", 0.05)),
    ("difference.perplexity.high < -.5e-1", ("perplexity", True, "high", "<", -0.05)),
    ("difference.non_refusal<=+1.", ("non_refusal", True, None, "<=", 1.0)),
    ("perplexity>50", ("perplexity", False, None, ">", 50.0)),
    ("arc_easy.acc.low < 0.3", ("arc_easy.acc", False, "low", "<", 0.3)),
])  # fmt: skip
def test_grammar(text: str, gate: tuple[object, ...]) -> None:
    assert parse_gate(text) == Gate(text.strip(), *gate)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [
    "", "over_refusal", "over_refusal > ", "> 0.1", "over_refusal = 0.1", "over_refusal == 0.1",
    "over_refusal > nan", "over_refusal > inf", "over_refusal > 0.1 and x < 1",
    "0.1 < over_refusal", "over_refusal >> 0.1", "over_refusal > 1e999",
    "__import__('os') > 1", "over_refusal > 0,1",
    "over_refusal > 0.1\nx", "-over_refusal > 1", "over_refusal > 1e99999999999",
])  # fmt: skip
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(RequestError, match="gate|number"):
        parse_gate(text)


def test_names_are_checked_before_anything_runs() -> None:
    measured = ("over_refusal", "perplexity")
    assert len(parse_gates(["over_refusal>1", "perplexity<9"], measured, KNOWN, False)) == 2
    with pytest.raises(UnknownNameError, match="did you mean over_refusal"):
        parse_gates(["over_refusals > 0.1"], measured, KNOWN, True)
    with pytest.raises(UnknownNameError):
        parse_gates(["over_refusal.middle > 0.1"], measured, KNOWN, True)
    with pytest.raises(RequestError, match="non_refusal, which is not measured; add its suite"):
        parse_gates(["non_refusal > 0.1"], measured, KNOWN, True)
    with pytest.raises(RequestError, match="--baseline"):
        parse_gates(["difference.over_refusal > 0.1"], measured, KNOWN, False)


def test_the_answer_names_gate_value_and_interval() -> None:
    gates = parse_gates(["over_refusal > 10%", "perplexity >= 30", "over_refusal.high < .5",
                         "difference.perplexity > 0"], KNOWN, KNOWN, True)  # fmt: skip
    figures = {
        "base": {"over_refusal": Figure(0.1, 0.05, 0.5), "perplexity": Figure(30.0, 28.0, 33.0)},
        "patch": {
            "over_refusal": Figure(0.125, 0.07, 0.21),
            "perplexity": Figure(29.0, 28.0, 31.0),
            "difference.perplexity": Figure(-0.03, -0.05, -0.01),
        },
    }
    results = check_gates(gates, figures)
    met = {(r.model, r.gate.text) for r in results if r.met}
    # At the limit itself only "or equal" holds.
    assert met == {
        ("patch", "over_refusal > 10%"),
        ("base", "perplexity >= 30"),
        ("patch", "over_refusal.high < .5"),
    }
    assert len(results) == 7
    with pytest.raises(NegativeResult) as caught:
        raise_if_met(results)
    said = str(caught.value)
    assert "patch: 'over_refusal > 10%' holds: over_refusal is 12.5% (95% 7.0% to 21.0%)" in said
    assert "perplexity is 30.00 (95% 28.00 to 33.00)" in said
    raise_if_met([r for r in results if not r.met])


def test_what_cannot_be_read_is_not_passed() -> None:
    gates = parse_gates(["over_refusal > 1", "perplexity.low > 1e9", "perplexity < 1"],
                        KNOWN, KNOWN, True)  # fmt: skip
    results = check_gates(gates, {"patch": {"perplexity": Figure(9.0)}})
    assert [result.met for result in results] == [True, True, False]
    with pytest.raises(NegativeResult) as caught:
        raise_if_met(results)
    assert "over_refusal was not measured" in str(caught.value)
    assert "cannot be read: perplexity is 9.00, no interval" in str(caught.value)
    assert results[0].as_json()["value"] is None
    assert gate_cells(results[0].as_json())[1:] == ["not measured", "no interval", "FAILS"]
    assert gate_cells(results[2].as_json())[1:] == ["9.00", "no interval", "passes"]
