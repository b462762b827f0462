"""Halves, their overlap beside chance, and the curve over thresholds."""

from __future__ import annotations

import pytest
import torch

from snt.anatomy import Anatomy
from snt.chance import Chance
from snt.masks import NeuronMask
from snt.overlap import Overlap, overlap_of
from snt.random_masks import random_like
from snt.scores import NeuronScores, Scores
from snt.selection_rules import Selection, select
from snt.stability import Half, chance_iou, stability_of, thresholds

ANATOMY = Anatomy("llama", 1, d_model=8, d_ff=200, heads=2, kv_heads=1, head_dim=4)
PARAMETERS = 10_000


def half(seed: int, same: int) -> Half:
    """Four prompts; `same` neurons are loud in every half, the others at random."""
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(4, 200, generator=generator)
    importance[:, :same] += 5.0
    return Half(Scores({(0, "ffn"): NeuronScores.of(importance)}), None)


def cut(corpus: Scores, against: Scores | None, rule: Selection) -> NeuronMask:
    return NeuronMask(ANATOMY, *select(ANATOMY, corpus, against, rule, "none", 1.0, PARAMETERS))


def test_stable_neurons_overlap_and_noise_does_not() -> None:
    halves = half(1, 20), half(2, 20)
    whole = Half(halves[0].corpus.merge(halves[1].corpus), None)
    rule = Selection.parse("budget=4.8%")  # 20 neurons of 24 parameters
    found = stability_of(cut, whole, halves, rule, PARAMETERS)
    assert found.prompts == (4, 4) and found.point.neurons == 20
    assert found.point.overlap is not None and found.point.overlap.iou == 1.0
    assert found.point.as_json()["iou_by_chance"] == pytest.approx(2 / 38)
    sizes = [point.neurons for point in found.curve]
    assert sizes == sorted(sizes) and found.point in found.curve
    # A budget of 0.01% is one parameter, which holds no neuron.
    assert found.curve[0].as_json()["iou"] is None and found.curve[0].neurons == 0
    noise = stability_of(cut, half(3, 0), (half(1, 0), half(2, 0)), rule, PARAMETERS)
    assert noise.point.overlap is not None and noise.point.overlap.iou < 0.4


def test_the_curve_scales_what_the_selection_names() -> None:
    def texts(rule: str) -> list[str]:
        return [one.text for one in thresholds(Selection.parse(rule), PARAMETERS)]

    assert texts("budget=0.5%") == [
        *(f"budget={p}%" for p in ("0.01", "0.03", "0.1", "0.3", "0.5", "1", "2"))
    ]
    assert texts("budget=1%") == [f"budget={p}%" for p in ("0.01", "0.03", "0.1", "0.3", "1", "2")]
    assert texts("budget=100")[-3:] == ["budget=0.3%", "budget=100", "budget=2%"]
    assert texts("epsilon=0.1") == [f"epsilon={e}" for e in ("0.4", "0.2", "0.1", "0.05", "0.025")]
    assert texts("topk=ffn:8,attn:2")[0] == "topk=ffn:2,q:1,k:1,v:1"
    assert texts("topk=ffn:8,attn:2")[2] == "topk=ffn:8,attn:2"


def test_iou_by_chance_is_that_of_random_masks() -> None:
    mask = NeuronMask(ANATOMY, {(0, "ffn"): torch.arange(60, dtype=torch.int32)})
    found = [
        overlap_of("a", random_like(mask, n), "b", random_like(mask, n + 500)) for n in range(200)
    ]
    mean = sum(overlap.iou for overlap in found) / len(found)
    assert chance_iou(found[0]) == pytest.approx(mean, abs=0.01)
    assert chance_iou(Overlap("a", "b", 0, 0, Chance(0.0, 0.0))) == 1.0
