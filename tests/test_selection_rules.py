"""Selections by name, and what each cuts from the same scores."""

from __future__ import annotations

import pytest
import torch

from snt.anatomy import KINDS, Anatomy
from snt.errors import RequestError
from snt.scores import NeuronScores, Place, Scores
from snt.selection_rules import Selection, check_selection, select

ANATOMY = Anatomy("llama", 2, 16, 24, 4, 2, 4)
SIZE = 10_000


def _scores(seed: int) -> Scores:
    draw = torch.Generator().manual_seed(seed)
    return Scores(
        {
            (layer, kind): NeuronScores.of(torch.rand(4, ANATOMY.size(kind), generator=draw))
            for layer in range(2)
            for kind in KINDS
        }
    )


def _cut(text: str, combine: str = "none", consistency: float = 1.0) -> dict[Place, torch.Tensor]:
    against = None if combine == "none" else _scores(2)
    rule = Selection.parse(text)
    return select(ANATOMY, _scores(1), against, rule, combine, consistency, SIZE)[0]


@pytest.mark.parametrize(
    ("text", "parameters"), [("budget=5%", 500), ("budget=0.5%", 50), ("budget=300", 300)]
)
def test_a_budget_is_kept_and_used(text: str, parameters: int) -> None:
    chosen = _cut(text)
    used = sum(len(at) * ANATOMY.neuron_parameters(kind) for (_, kind), at in chosen.items())
    assert parameters - 48 < used <= parameters


def test_epsilon_keeps_what_is_important_on_every_prompt() -> None:
    scores = _scores(1)
    for (layer, kind), at in _cut("epsilon=0.5").items():
        kept = torch.zeros(ANATOMY.size(kind), dtype=torch.bool)
        kept[at.long()] = True
        assert torch.equal(kept, scores.places[layer, kind].minimum >= 0.5)


def test_topk_keeps_the_first_of_every_prompt() -> None:
    scores = _scores(1)
    chosen = _cut("topk=ffn:12,attn:8")
    for place, at in chosen.items():
        limit = 12 if place[1] == "ffn" else 8
        expected = (scores.places[place].worst_rank < limit).nonzero().flatten()
        assert at.tolist() == expected.tolist()
    assert all(kind == "q" for _, kind in _cut("topk=q:16"))


def test_subtract_takes_the_foundation_away() -> None:
    safe, foundation = _cut("topk=ffn:20,attn:14"), None
    rule = Selection.parse("topk=ffn:20,attn:14")
    foundation = select(ANATOMY, _scores(2), None, rule, "none", 1.0, SIZE)[0]
    left = _cut("topk=ffn:20,attn:14", combine="subtract")
    for place, at in left.items():
        others = foundation.get(place, torch.tensor([])).tolist()
        assert set(at.tolist()) == set(safe[place].tolist()) - set(others)


def test_every_chosen_neuron_has_a_score() -> None:
    rule = Selection.parse("budget=5%")
    chosen, scores = select(ANATOMY, _scores(1), _scores(2), rule, "contrast", 1.0, SIZE)
    assert {p: len(t) for p, t in chosen.items()} == {p: len(t) for p, t in scores.items()}
    assert all(t.dtype == torch.float32 for t in scores.values())


@pytest.mark.parametrize(
    "text",
    ["budget", "budget=x", "budget=0%", "budget=101%", "budget=0.5", "budgt=1%", "epsilon=-1",
     "epsilon=nan", "topk=ffn", "topk=all:3", "topk=ffn:-1", ""],
)  # fmt: skip
def test_what_is_no_selection_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="budget="):
        Selection.parse(text)


@pytest.mark.parametrize(
    ("text", "combine", "message"),
    [
        ("epsilon=0.1", "contrast", "takes --select budget"),
        ("budget=1", "none", "holds no neuron"),
        ("epsilon=99", "none", "leaves no neuron"),
        ("budget=5%", "average", "contrast"),
    ],
)
def test_what_cannot_be_served_says_why(text: str, combine: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _cut(text, combine)
    with pytest.raises(RequestError, match="--against"):
        rule = Selection.parse("budget=5%")
        select(ANATOMY, _scores(1), None, rule, "contrast", 1.0, SIZE)


def test_subtract_with_a_threshold_of_its_own() -> None:
    safe, other = Selection.parse("topk=ffn:20,attn:14"), Selection.parse("budget=20%")
    left = select(
        ANATOMY, _scores(1), _scores(2), safe, "subtract", 1.0, SIZE, select_against=other
    )[0]
    whole = select(ANATOMY, _scores(1), None, safe, "none", 1.0, SIZE)[0]
    foundation = select(ANATOMY, _scores(2), None, other, "none", 1.0, SIZE)[0]
    for place, at in whole.items():
        expected = set(at.tolist()) - set(foundation.get(place, torch.tensor([])).tolist())
        assert set(left.get(place, torch.tensor([])).tolist()) == expected


def test_a_weaker_consistency_keeps_more_and_holds() -> None:
    strict, weak = (_cut("topk=ffn:12,attn:8", consistency=c) for c in (1.0, 0.75))
    assert sum(map(len, weak.values())) > sum(map(len, strict.values()))
    draw = torch.Generator().manual_seed(1)
    for layer, kind in [(layer, kind) for layer in range(2) for kind in KINDS]:
        kept = weak[layer, kind].tolist()
        assert set(strict.get((layer, kind), torch.tensor([])).tolist()) <= set(kept)
        rank = torch.rand(4, ANATOMY.size(kind), generator=draw).argsort(1, descending=True)
        within = (rank.argsort(1) < (12 if kind == "ffn" else 8)).sum(0)
        assert all(within[neuron] >= 3 for neuron in kept)


@pytest.mark.parametrize(
    ("rule", "combine", "consistency", "other", "message"),
    [
        ("budget=5%", "contrast", 0.9, None, "contrast weighs all prompts"),
        ("epsilon=0.1", "none", 0.9, None, "epsilon has no ranks"),
        ("budget=5%", "subtract", 0.9, "epsilon=0.1", "epsilon has no ranks"),
        ("budget=5%", "contrast", 1.0, "budget=1%", "subtract takes away"),
        ("budget=5%", "none", 0.0, None, r"not in \(0, 1\]"),
    ],
)
def test_what_would_be_ignored_is_refused(
    rule: str, combine: str, consistency: float, other: str | None, message: str
) -> None:
    second = None if other is None else Selection.parse(other)
    with pytest.raises(RequestError, match=message):
        check_selection(Selection.parse(rule), combine, consistency, combine != "none", second)
