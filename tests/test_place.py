"""Does the place matter: arms of one size, statistics of their points, resuming."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import snt
from snt import place_bench
from snt.errors import FormatError, RequestError, UnknownNameError
from snt.evaluation.settings import Settings
from snt.place import does_place_matter
from snt.place_arms import ARMS, agreed_order, arms_of
from snt.place_points import ArmResult, Point
from snt.place_results import place_results, times_needed
from snt.place_settings import PlaceSettings, rate_for
from snt.report.place import place_picture
from snt.scores_files import load_scores
from snt.selection import contrast_order
from snt.training import Schedule


def _point(harmful: int, safe: int, scale: float = 1.0) -> Point:
    """Of 10 harmful and 10 safe prompts, how many were refused."""
    refused = tuple(n < harmful for n in range(10))
    return Point(scale, refused, {"over_refusal": tuple(n < safe for n in range(10))}, 0.01)


def _arm(
    rule: str, budget: str, parameters: int, *points: Point, draw: int | None = None
) -> ArmResult:
    return ArmResult(rule, budget, draw, 3, parameters, 0.5, 0.1, points, 1.0)


def test_separation_is_safety_minus_over_refusal() -> None:
    point = _point(8, 3)
    assert point.safety == 0.8 and point.over_refusal == pytest.approx(0.3)
    assert point.separation == pytest.approx(0.5)


def test_rows_take_draws_together_and_keep_the_best_scale_apart() -> None:
    arms = [
        _arm("random", "1%", 100, _point(4, 0, 0.5), _point(9, 9), draw=1),
        _arm("random", "1%", 100, _point(2, 0, 0.5), _point(7, 7), draw=2),
        _arm("contrast", "1%", 100, _point(1, 0, 0.5), _point(10, 0)),
    ]
    random, contrast = place_results(arms)
    assert (random.rule, random.draws, contrast.draws) == ("random", 2, 1)
    assert random.separation[0] == pytest.approx(0.0) and random.best[0] == pytest.approx(0.3)
    assert contrast.separation == pytest.approx((1.0, 1.0, 1.0))
    assert random.separation[1] <= 0.0 <= random.separation[2]


def test_a_difference_pairs_the_prompts() -> None:
    """Prompts that both refuse or both answer tell nothing; ten pairs that differ tell much."""
    arms = [
        _arm("random", "1%", 100, _point(4, 0), draw=1),
        _arm("random", "1%", 100, _point(4, 0), draw=2),
        _arm("contrast", "1%", 100, _point(4, 0)),
        _arm("subtract", "1%", 100, _point(9, 0)),
    ]
    random, contrast, subtract = place_results(arms)
    assert random.over_random is None
    assert contrast.over_random == pytest.approx((0.0, 0.0, 0.0))
    assert subtract.over_random is not None
    middle, low, high = subtract.over_random
    assert middle == pytest.approx(0.5) and 0.0 < low < middle < high


def test_the_area_counts_pairs_told_apart() -> None:
    def arm(rule: str, draw: int | None, harmful: list[float], safe: list[float]) -> ArmResult:
        odds = {"non_refusal": tuple(harmful), "over_refusal": tuple(safe)}
        return _arm(rule, "1%", 100, replace(_point(1, 1), odds=odds), draw=draw)

    random, contrast = place_results(
        [arm("random", 1, [1, 3], [1, 2]), arm("contrast", None, [5, 4], [-3, 2])]
    )
    assert contrast.auc == pytest.approx((1.0, 1.0, 1.0))
    assert random.auc is not None and random.auc[0] == pytest.approx(2.5 / 4)
    assert contrast.auc_over_random is not None
    assert contrast.auc_over_random[0] == pytest.approx(1.5 / 4)


def test_agreement_holds_a_neuron_to_the_half_that_speaks_least_for_it(detection: Path) -> None:
    first = load_scores(detection.with_name("m.scores.safetensors")).scores
    second = load_scores(detection.with_name("m.against.scores.safetensors")).scores
    both = agreed_order([(first, second), (second, first)])
    one, other = contrast_order(first, second), contrast_order(second, first)
    for place, values in both.items():
        assert torch.equal(values, torch.maximum(one[place], other[place]))
    alone = agreed_order([(first, second)])
    assert all(torch.equal(values, one[place]) for place, values in alone.items())


def test_times_needed_reads_the_control_curve() -> None:
    rows = place_results(
        [
            _arm("random", "1%", 100, _point(2, 0)),
            _arm("random", "2%", 400, _point(6, 0)),
            _arm("contrast", "1%", 100, _point(4, 0)),
            _arm("contrast", "2%", 400, _point(9, 0)),
            _arm("subtract", "1%", 100, _point(1, 0)),
        ]
    )
    found = times_needed(rows, "contrast", "random")
    assert found == {"1%": pytest.approx(2.0), "2%": None}  # half-way on a log scale; never
    assert times_needed(rows, "subtract", "random") == {"1%": 1.0}


def test_a_finished_arm_survives_its_file() -> None:
    arm = _arm("random", "1%", 100, _point(2, 1, 0.5), _point(3, 2), draw=2)
    assert ArmResult.from_json(json.loads(json.dumps(arm.as_json()))) == arm
    with pytest.raises(FormatError, match="damaged"):
        ArmResult.from_json({"points": []})


@pytest.fixture(scope="module")
def detection(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mask = tmp_path_factory.mktemp("place") / "m.safetensors"
    for name, word in (("bad", "break"), ("good", "bake")):
        lines = [json.dumps({"prompt": f"{word} the thing number {n}"}) for n in range(6)]
        mask.with_name(f"{name}.jsonl").write_text("\n".join(lines))
    snt.detect(
        str(pico),
        corpus=str(mask.with_name("bad.jsonl")),
        against=str(mask.with_name("good.jsonl")),
        select_by="budget=5%",
        output=mask,
    )
    return mask


def test_arms_are_of_one_size_and_controls_match(detection: Path) -> None:
    first = load_scores(detection.with_name("m.scores.safetensors"))
    second = load_scores(detection.with_name("m.against.scores.safetensors"))
    arms = list(
        arms_of(first.anatomy, first.scores, second.scores, list(ARMS), ["2%", "10%"], 2, 20_000)
    )
    assert len(arms) == 2 * (3 + 2 * 2 + 2)
    for budget, size in (("2%", 400), ("10%", 2000)):
        mine = {arm.name: arm.mask for arm in arms if arm.budget == budget}
        largest = max(first.anatomy.neuron_parameters(kind) for kind in ("ffn", "q"))
        for name, mask in mine.items():
            assert mask.parameters <= size, name
            assert mask.parameters > size - largest - 1, name
        located = mine[f"contrast at {budget}"]
        for name in ("random-1", "random-2", "magnitude", "foundation"):
            control = mine[f"{name} at {budget}"]
            assert control.counts() == located.counts()
            assert {p: len(v) for p, v in control.neurons.items()} == {
                p: len(v) for p, v in located.neurons.items()
            }
        assert mine[f"uniform-1 at {budget}"].neurons.keys() and not all(
            torch.equal(v, mine[f"uniform-2 at {budget}"].neurons.get(p, torch.empty(0)))
            for p, v in mine[f"uniform-1 at {budget}"].neurons.items()
        )


def test_unknown_rules_and_no_located_rule_are_refused(detection: Path) -> None:
    file = load_scores(detection.with_name("m.scores.safetensors"))
    for rules, error in ((["contrst"], UnknownNameError), (["random"], RequestError)):
        with pytest.raises(error):
            list(arms_of(file.anatomy, file.scores, file.scores, rules, ["5%"], 1, 20_000))


def test_a_stopped_comparison_goes_on_and_draws_its_curve(
    pico: Path, detection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "break it", "response": "No."}\n')
    prompts = str(detection.with_name("bad.jsonl"))
    prose = tmp_path / "prose.jsonl"
    prose.write_text('{"text": "A plain sentence about the weather."}\n' * 2)
    settings = PlaceSettings(
        budgets=("5%",),
        rules=("contrast", "random", "turned"),
        draws=1,
        scales=(0.5, 1.0),
        data=str(data),
        retain=(str(detection.with_name("good.jsonl")),),
        schedule=Schedule(epochs=2, batch=1, retain_batch=2),
        evaluate=Settings(
            new_tokens=2,
            corpora={
                "non_refusal": prompts,
                "harmless_refusal": prompts,
                "over_refusal": prompts,
                "perplexity": str(prose),
            },
        ),
    )
    scores = detection.with_name("m.scores.safetensors")
    against = detection.with_name("m.against.scores.safetensors")
    output = tmp_path / "place"

    def run() -> dict[str, Any]:
        return does_place_matter(
            str(pico),
            scores=scores,
            against=against,
            others={"turned": [(against, scores)]},
            settings=settings,
            output=output,
        ).as_json()

    whole = run()
    kept = (output / "arms.jsonl").read_text().splitlines()
    assert len(kept) == 3
    # Killed while the third arm was written: it alone is made again, to the same figures.
    (output / "arms.jsonl").write_text(f"{kept[0]}\n{kept[1]}\n{kept[2][:40]}")
    trained = []
    plain = place_bench.train
    monkeypatch.setattr(place_bench, "train", lambda *a, **k: trained.append(1) or plain(*a, **k))
    again = run()
    assert len(trained) == 1
    assert whole["rows"] == again["rows"]
    ElementTree.fromstring((output / "curve.svg").read_text())
    # A finished comparison is only read: nothing is measured or answered again.
    monkeypatch.setattr(place_bench, "measure", None)
    monkeypatch.setattr(place_bench, "kept_corpora", None)
    read = run()
    assert (read["rows"], read["before"]) == (whole["rows"], whole["before"])


def test_the_picture_is_well_formed_for_hostile_names() -> None:
    class Found:
        arms = [_arm("<b>", "1%", 100, _point(2, 1, 0.5), _point(3, 2))]

    page = ElementTree.fromstring(place_picture(Found()))  # type: ignore[arg-type]
    # One panel is narrower than the title and the legend.
    assert float(page.attrib["viewBox"].split()[2]) >= 4 * 170


def test_scales_must_hold_the_trained_one() -> None:
    with pytest.raises(RequestError, match="1 is among them"):
        PlaceSettings(scales=(0.5,)).check()


def test_smaller_masks_get_larger_rates() -> None:
    assert rate_for(2e-3, 1_000, 100_000) == pytest.approx(2e-3)
    assert rate_for(2e-3, 40, 100_000) == pytest.approx(1e-2)
