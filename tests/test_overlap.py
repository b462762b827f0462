"""Overlap of masks beside chance: exact moments against enumeration, what several masks share."""

from __future__ import annotations

import io
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, Group
from scipy.stats import hypergeom

from snt.anatomy import Anatomy
from snt.chance import chance_in_place
from snt.errors import MismatchError
from snt.masks import NeuronMask
from snt.overlap import compare, overlap_of, shared_by
from snt.random_masks import random_like
from snt.report.overlap import comparison

# 10 ffn, 8 q, 4 k and 4 v neurons in each of three layers.
ANATOMY = Anatomy("llama", 3, d_model=8, d_ff=10, heads=4, kv_heads=2, head_dim=2)


def _mask(
    neurons: dict[tuple[int, str], list[int]], anatomy: Anatomy = ANATOMY, scored: bool = False
) -> NeuronMask:
    held = {place: torch.tensor(found, dtype=torch.int32) for place, found in neurons.items()}
    # A score that says which neuron it belongs to.
    scores = {place: 10.0 - found.float() for place, found in held.items()} if scored else {}
    return NeuronMask(anatomy, held, scores)


def _moments(counts: tuple[int, ...], size: int, at_least: int) -> tuple[float, float]:
    """Mean and variance by listing every way to draw the masks."""
    draws = product(*(list(combinations(range(size), count)) for count in counts))
    found = [
        sum(sum(neuron in mask for mask in masks) >= at_least for neuron in range(size))
        for masks in draws
    ]
    return float(np.mean(found)), float(np.var(found))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_moments_against_every_draw(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 4))
    counts = tuple(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=4)))
    at_least = data.draw(st.integers(1, len(counts)))
    mean, variance = chance_in_place([np.array([c]) for c in counts], np.array([size]), at_least)
    expected = _moments(counts, size, at_least)
    assert (mean[0], variance[0]) == pytest.approx(expected, abs=1e-9)


def test_two_masks_are_hypergeometric() -> None:
    sizes, mine, theirs = np.array([1536, 576, 9]), np.array([20, 575, 2]), np.array([90, 3, 1])
    mean, variance = chance_in_place([mine, theirs], sizes, 2)
    expected = hypergeom.stats(sizes, mine, theirs, moments="mv")
    assert mean == pytest.approx(expected[0], abs=1e-9)
    assert variance == pytest.approx(expected[1], abs=1e-9)


def test_random_masks_share_what_chance_says() -> None:
    like = _mask({(0, "ffn"): [0, 1, 2, 3, 4], (1, "q"): [0, 1, 2], (2, "v"): [3]})
    counts = [shared_by({str(i): random_like(like, 3 * s + i) for i in range(3)}, 2).neurons
              for s in range(400)]  # fmt: skip
    chance = shared_by({str(i): like for i in range(3)}, 2).chance
    assert np.mean(counts) == pytest.approx(chance.expected, abs=4 * chance.deviation / 20)
    assert np.std(counts) == pytest.approx(chance.deviation, rel=0.15)


def test_three_masks() -> None:
    masks = {
        "en": _mask({(0, "ffn"): [1, 2, 3], (2, "k"): [0]}, scored=True),
        "it": _mask({(0, "ffn"): [2, 3, 4], (2, "k"): [0]}, scored=True),
        "th": _mask({(0, "ffn"): [3, 9], (1, "q"): [5]}, scored=True),
    }
    found = compare(masks)
    assert found.neurons == {"en": 4, "it": 4, "th": 3} and found.names == ("en", "it", "th")
    assert [(o.first, o.second, o.intersection) for o in found.overlaps] == [
        ("en", "it", 3),
        ("en", "th", 1),
        ("it", "th", 1),
    ]
    assert found.of("th", "en") is found.overlaps[1] and found.overlaps[0].iou == 3 / 5
    assert found.overlaps[0].expected == pytest.approx(3 * 3 / 10 + 1 / 4)
    every, most = found.shared
    assert (every.at_least, every.of, every.neurons) == (3, 3, 1)
    assert every.chance.expected == pytest.approx(10 * 0.3 * 0.3 * 0.2)
    assert (most.at_least, most.neurons) == (2, 3)
    assert {kind: share.count for kind, share in most.kinds.items()} == {
        **{"ffn": 2, "q": 0, "k": 1, "v": 0}
    }
    assert [most.thirds[name].count for name in ("early", "middle", "late")] == [2, 0, 1]
    assert sum(c.expected for c in most.kind_chance.values()) == pytest.approx(most.chance.expected)
    assert sum(c.expected for c in most.third_chance.values()) == pytest.approx(
        most.chance.expected
    )
    assert most.layers["ffn"] == (2, 0, 0)
    # Best by the smallest score among the masks that hold them.
    assert [(n.layer, n.kind, n.index, n.masks, n.score) for n in most.top] == [
        (2, "k", 0, 2, 10.0),
        (0, "ffn", 2, 2, 8.0),
        (0, "ffn", 3, 3, 7.0),
    ]
    document = found.as_json()
    assert document["shared"][1]["kinds"]["k"]["ratio"] == pytest.approx(1 / (4 * 1 / 16))
    assert document["overlaps"][0]["distance"] > 0


def test_none_one_and_two_masks() -> None:
    mask = _mask({(0, "q"): [1]})
    assert compare({}).overlaps == () and compare({"a": mask}).shared == ()
    (shared,) = compare({"a": mask, "b": mask}).shared
    assert (shared.at_least, shared.neurons, shared.top) == (2, 1, ())
    empty = overlap_of("a", _mask({}), "b", _mask({}))
    assert empty.iou == 1.0 and empty.ratio is None and empty.as_json()["distance"] is None


def test_masks_of_different_models() -> None:
    other = _mask({}, Anatomy("llama", 4, 8, 10, 4, 2, 2))
    with pytest.raises(MismatchError, match=r"a and c .* \(layers 3 and 4\)"):
        compare({"a": _mask({}), "b": _mask({}), "c": other})


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("width", [40, 80])
def test_the_matrix_fits_or_is_a_list(hostile: bool, width: int) -> None:
    names = ("en", "it", "zh", "th", "[red]x\x1b, a long name" if hostile else "vi")
    masks = {name: _mask({(0, "ffn"): [0, i + 1]}) for i, name in enumerate(names)}
    console = Console(
        file=io.StringIO(), width=width, legacy_windows=False, color_system="truecolor"
    )
    console.print(Group(*comparison(compare(masks))))
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert ("above the diagonal" in drawn) == (width == 80)
    assert "x\x1b," not in drawn and ("[red]x" in drawn) == hostile
    plain = Console(file=io.StringIO(), width=width, legacy_windows=False)
    plain.print(Group(*comparison(compare(masks))))
    assert isinstance(plain.file, io.StringIO)
    lines = plain.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "0.333" in plain.file.getvalue()
