"""Query and key maths on made-up activations, against one neuron at a time in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from snt.backend import LayerActivations, Turn
from snt.importance import attention_change, fast, paper, query_key, released_code
from snt.importance.packing import packed
from snt.importance.value import value_gram, value_importance

GROUPS, PER_GROUP, DIM, MODEL = 2, 3, 8, 20
HEADS = GROUPS * PER_GROUP
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no rotary": {"turned": 0},
    "partial rotary": {"turned": 4},
    "interleaved": {"interleaved": True},
    "window": {"window": 3},
    "window per head": {"window": 3, "per_head": True},
    "cap": {"softcap": 3.0},
    "gain of each head": {"gain_span": "head"},
    "gain over all heads": {"gain_span": "all"},
    "everything": {"window": 4, "softcap": 4.0, "gain_span": "head", "turned": 6},
    "gain over all heads, cap": {"softcap": 4.0, "gain_span": "all", "per_head": True, "window": 5},
}


def _turn(tokens: int, turned: int, interleaved: bool) -> Turn:
    half = turned // 2
    angles = torch.arange(tokens).double()[:, None] * 0.7 ** torch.arange(half).double()
    cos, sin = angles.cos(), angles.sin()
    own, cross = torch.ones(tokens, DIM).double(), torch.zeros(tokens, DIM).double()
    partner = torch.arange(DIM)
    first = torch.arange(half) * 2 if interleaved else torch.arange(half)
    second = first + 1 if interleaved else first + half
    own[:, first] = own[:, second] = cos
    cross[:, first], cross[:, second] = sin, -sin
    partner[first], partner[second] = second, first
    return Turn(own, cross, partner)


def _apply(turn: Turn, raw: Tensor) -> Tensor:
    """Rotary embedding of (H, T, D)."""
    turned = raw * turn.own
    return turned.index_add(2, turn.partner, raw * turn.cross)


class Layer:
    """One prompt's attention in float64, with any neuron removed by definition."""

    def __init__(
        self,
        tokens: int,
        scale: float = 1.0,
        *,
        turned: int = DIM,
        interleaved: bool = False,
        window: int | None = None,
        per_head: bool = False,
        softcap: float | None = None,
        gain_span: Literal["head", "all"] | None = None,
        seed: int = 0,
    ) -> None:
        draw = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).double()

        self.query, self.key = (
            random(HEADS, tokens, DIM) * scale,
            random(GROUPS, tokens, DIM) * scale,
        )
        self.value, self.output = random(GROUPS, tokens, DIM), random(MODEL, HEADS * DIM)
        self.turn = _turn(tokens, turned, interleaved)
        self.softcap, self.gain_span = softcap, gain_span
        self.scale = DIM**-0.5
        rows = torch.arange(tokens)
        causal = rows[:, None] >= rows
        self.visible = causal.expand(HEADS if per_head else 1, -1, -1).clone()
        if window is not None:
            near = causal & (rows[:, None] - rows < window)
            # Where heads differ, every second one sees all.
            self.visible[::2] = near

    def normed(self, raw: Tensor, without: tuple[int, int] | None) -> Tensor:
        """(H, T, D) raw coordinates, one of them zero, through the norm if there is one."""
        if without is not None:
            raw = raw.clone()
            raw[without[0], :, without[1]] = 0.0
        if self.gain_span is None:
            return raw
        over = (2,) if self.gain_span == "head" else (0, 2)
        return raw / (raw.square().mean(dim=over, keepdim=True) + 1e-3).sqrt()

    def gain(self, raw: Tensor) -> Tensor | None:
        """How much the others of its span grow without each coordinate, minus one -> (H, T, D)."""
        if self.gain_span is None:
            return None
        over = (2,) if self.gain_span == "head" else (0, 2)
        count = DIM if self.gain_span == "head" else raw.shape[0] * DIM
        share = raw.square() / (raw.square().sum(dim=over, keepdim=True) + count * 1e-3)
        return torch.expm1(-0.5 * torch.log1p(-share))

    def logits(self, q: tuple[int, int] | None = None, k: tuple[int, int] | None = None) -> Tensor:
        query = _apply(self.turn, self.normed(self.query, q))
        key = _apply(self.turn, self.normed(self.key, k)).repeat_interleave(PER_GROUP, 0)
        return query @ key.mT * self.scale

    def attention(self, logits: Tensor, visible: Tensor | None = None) -> Tensor:
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits.masked_fill(~self.visible, -torch.inf).softmax(-1)

    def block(self, attention: Tensor) -> Tensor:
        heads = attention @ self.value.repeat_interleave(PER_GROUP, 0)
        return heads.transpose(0, 1).flatten(1) @ self.output.T

    def seen(self) -> LayerActivations:
        query, key = self.normed(self.query, None), self.normed(self.key, None)
        attention = self.attention(self.logits())

        def one(part: Tensor) -> Tensor:
            return part.float().unsqueeze(0)

        gains = [self.gain(raw) for raw in (self.query, self.key)]
        return LayerActivations(
            middle=torch.zeros(1, len(self.turn.own), 1),
            query_raw=one(query),
            key_raw=one(key),
            query=one(_apply(self.turn, query)),
            key=one(_apply(self.turn, key)),
            value=one(self.value),
            turn=Turn(one(self.turn.own), one(self.turn.cross), self.turn.partner),
            visible=self.visible.unsqueeze(0),
            attended=one(attention @ self.value.repeat_interleave(PER_GROUP, 0)),
            scale=self.scale,
            softcap=self.softcap,
            query_gain=None if gains[0] is None else one(gains[0]),
            key_gain=None if gains[1] is None else one(gains[1]),
            gain_span=self.gain_span or "head",
        )

    def real(self) -> Tensor:
        return torch.ones(1, len(self.turn.own), dtype=torch.bool)

    def units(self, heads: int) -> int:
        return 1 if self.gain_span == "all" else heads

    def by_definition(self, measure: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """measure(P', P) for every query neuron and every key neuron, float64."""
        before = self.attention(self.logits())
        return (
            torch.stack(
                [
                    measure(self.attention(self.logits(q=(h, d))), before)
                    for h in range(HEADS)
                    for d in range(DIM)
                ]
            ),
            torch.stack(
                [
                    measure(self.attention(self.logits(k=(g, d))), before)
                    for g in range(GROUPS)
                    for d in range(DIM)
                ]
            ),
        )

    def moved(self, after: Tensor, before: Tensor) -> Tensor:
        return self.block(after - before).norm()


def _exact(layer: Layer, seen: LayerActivations, real: Tensor) -> tuple[Tensor, Tensor]:
    output = layer.output.float()
    query = query_key.head_factors(output, layer.units(HEADS))
    key = query_key.head_factors(output, layer.units(GROUPS))
    return (
        query_key.query_importance(seen, real, query),
        query_key.key_importance(seen, real, key),
    )


def _close(mine: Tensor, expected: Tensor, floor: float) -> None:
    torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=floor)


@pytest.mark.parametrize("scale", [0.003, 0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("case", CASES)
def test_exact_equals_removal(case: str, scale: float) -> None:
    layer = Layer(21, scale, **CASES[case])
    query, key = _exact(layer, layer.seen(), layer.real())
    expected = layer.by_definition(layer.moved)
    floor = 1e-6 * float(layer.block(layer.attention(layer.logits())).norm())
    _close(query[0], expected[0], floor)
    _close(key[0], expected[1], floor)


@pytest.mark.parametrize("case", ["plain", "gain of each head", "cap"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_every_length_takes_the_way_that_suits_it(case: str, tokens: int) -> None:
    layer = Layer(tokens, **CASES[case])
    query, key = _exact(layer, layer.seen(), layer.real())
    expected = layer.by_definition(layer.moved)
    floor = 1e-6 * float(layer.block(layer.attention(layer.logits())).norm())
    _close(query[0], expected[0], floor)
    _close(key[0], expected[1], floor)


@pytest.mark.parametrize("case", ["plain", "everything", "gain over all heads, cap"])
def test_small_blocks_change_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(19, **CASES[case])
    whole = _exact(layer, layer.seen(), layer.real())
    monkeypatch.setattr(attention_change, "_BLOCK", 400)
    pieces = _exact(layer, layer.seen(), layer.real())
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _padded(layers: list[Layer], left: bool) -> tuple[LayerActivations, Tensor]:
    """A batch of several prompts; padded positions hold NaN and see everything."""
    longest = max(len(layer.turn.own) for layer in layers)
    real = torch.zeros(len(layers), longest, dtype=torch.bool)
    parts: dict[str, list[Tensor]] = {}
    for row, layer in enumerate(layers):
        tokens = len(layer.turn.own)
        place = slice(longest - tokens, longest) if left else slice(0, tokens)
        real[row, place] = True
        seen = layer.seen()
        for name in ("query_raw", "key_raw", "query", "key", "value", "attended"):
            part = getattr(seen, name)[0]
            wide = torch.full((len(part), longest, DIM), torch.nan)
            wide[:, place] = part
            parts.setdefault(name, []).append(wide)
        for name in ("own", "cross"):
            wide = torch.full((longest, DIM), torch.nan)
            wide[place] = getattr(seen.turn, name)[0]
            parts.setdefault(name, []).append(wide)
        square = torch.ones(len(seen.visible[0]), longest, longest, dtype=torch.bool)
        square[:, place, place] = seen.visible[0]
        parts.setdefault("visible", []).append(square)
    stacked = {name: torch.stack(part) for name, part in parts.items()}
    turn = Turn(stacked.pop("own"), stacked.pop("cross"), layers[0].turn.partner)
    return replace(layers[0].seen(), turn=turn, **stacked), real


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_never_seen(left: bool) -> None:
    layers = [Layer(tokens, seed=tokens) for tokens in (9, 1, 5)]
    for layer in layers:
        layer.output = layers[0].output
    seen, real = _padded(layers, left)
    grams = [query_key.head_grams(layers[0].output.float(), GROUPS)] * 2
    together = (
        *_exact(layers[0], seen, real),
        fast.fast_query_importance(seen, real, grams[0]),
        fast.fast_key_importance(seen, real, grams[1]),
        released_code.released_key_score(seen, real),
        paper.paper_value_importance(seen.attended, GROUPS, real),
        value_importance(seen.attended, value_gram(layers[0].output.float(), GROUPS, DIM), real),
    )
    for row, layer in enumerate(layers):
        one, all_real = layer.seen(), layer.real()
        alone = (
            *_exact(layer, one, all_real),
            fast.fast_query_importance(one, all_real, grams[0]),
            fast.fast_key_importance(one, all_real, grams[1]),
            released_code.released_key_score(one, all_real),
            paper.paper_value_importance(one.attended, GROUPS, all_real),
            value_importance(one.attended, value_gram(layer.output.float(), GROUPS, DIM), all_real),
        )
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[row], single[0], rtol=1e-4, atol=1e-5)


def test_packing_returns_a_full_batch_as_it_is() -> None:
    layer = Layer(5)
    seen = layer.seen()
    assert packed(seen, layer.real()) is seen


def test_equal_values_and_a_pruned_head() -> None:
    layer = Layer(8)
    layer.value[:, 3:6] = layer.value[:, 2:3]
    layer.output[:, :DIM] = 0.0
    query, key = _exact(layer, layer.seen(), layer.real())
    expected = layer.by_definition(layer.moved)
    _close(query[0], expected[0], 1e-5)
    _close(key[0], expected[1], 1e-5)
    assert bool((query[0, :DIM] == 0).all())


@pytest.mark.parametrize("case", CASES)
def test_first_order_is_exact_for_small_shifts(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_LARGE_SHARE", 0.0)
    # With as many directions as there are rows of values, nothing but the order is left out.
    layer = Layer(6, 0.003 if CASES[case].get("gain_span") is None else 1.0, **CASES[case])
    if layer.gain_span is not None:
        # A norm makes raw coordinates large again: only a small softmax scale keeps shifts small.
        layer.scale = 1e-5
    output = layer.output.float()
    grams = query_key.head_grams(output, layer.units(GROUPS))
    parts = (
        query_key.query_removals(layer.seen(), grams, by_group=True),
        query_key.key_removals(layer.seen(), grams),
    )
    for removals, expected in zip(parts, layer.by_definition(layer.moved), strict=True):
        norms = [fast.first_order_norms(part, 6 * HEADS) for part in removals]
        mine = torch.cat([part.view(1, -1) for part in norms], dim=1)[0].double()
        torch.testing.assert_close(mine, expected, rtol=1e-2, atol=1e-3 * float(expected.max()))


@pytest.mark.parametrize("case", CASES)
def test_fast_keeps_the_order(case: str) -> None:
    # Values drawn at random have no leading directions: a trained model is easier by far.
    layer = Layer(24, 0.5, **CASES[case])
    output, seen, real = layer.output.float(), layer.seen(), layer.real()
    estimates = (
        fast.fast_query_importance(seen, real, query_key.head_grams(output, layer.units(GROUPS))),
        fast.fast_key_importance(seen, real, query_key.head_grams(output, layer.units(GROUPS))),
    )
    for estimate, exact in zip(estimates, _exact(layer, seen, real), strict=True):
        assert spearmanr(estimate[0], exact[0]).statistic > 0.8


@pytest.mark.parametrize("case", CASES)
def test_fast_is_exact_where_all_are_redone(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_LARGE_SHARE", 1.0)
    monkeypatch.setattr(fast, "QUERY_RANK", 13 * HEADS)
    monkeypatch.setattr(fast, "KEY_RANK", 13 * HEADS)
    layer = Layer(13, **CASES[case])
    grams = query_key.head_grams(layer.output.float(), layer.units(GROUPS))
    seen, real = layer.seen(), layer.real()
    expected = layer.by_definition(layer.moved)
    for mine, exact in zip(
        (
            fast.fast_query_importance(seen, real, grams),
            fast.fast_key_importance(seen, real, grams),
        ),
        expected,
        strict=True,
    ):
        # What is left of the diagonal is rounding, but it counts without sign.
        torch.testing.assert_close(mine[0].double(), exact, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_a_beginning_and_what_follows_make_the_whole(case: str) -> None:
    layers = [Layer(tokens, **CASES[case]) for tokens in (14, 11)]
    long, short = layers
    for name in ("query", "key", "value"):
        getattr(short, name)[:, :9] = getattr(long, name)[:, :9]
    short.output = long.output
    seen, real = _padded(layers, left=False)
    first, after, every = _beginning(seen, 9), _after(seen, 9), torch.ones(1, 9, dtype=torch.bool)
    output = long.output.float()
    factors = [query_key.head_factors(output, long.units(n)) for n in (HEADS, GROUPS)]
    grams = query_key.head_grams(output, long.units(GROUPS))
    for importance, terms in (
        (query_key.query_importance, factors[0]),
        (query_key.key_importance, factors[1]),
    ):
        once = torch.hypot(importance(after, real[:, 9:], terms), importance(first, every, terms))
        torch.testing.assert_close(once, importance(seen, real, terms), rtol=1e-4, atol=1e-5)
    shared = fast.group_terms(after, real[:, 9:], grams)
    for estimate in (fast.fast_query_importance, fast.fast_key_importance):
        rest = estimate(after, real[:, 9:], grams, shared)
        once = torch.hypot(rest, estimate(first, every, grams))
        assert spearmanr(once[1], estimate(seen, real, grams)[1]).statistic > 0.9


def _after(seen: LayerActivations, tokens: int) -> LayerActivations:
    """Without the rows of the first tokens, whose columns stay."""
    gain = seen.query_gain
    return replace(
        seen,
        query_raw=seen.query_raw[:, :, tokens:],
        query=seen.query[:, :, tokens:],
        visible=seen.visible[:, :, tokens:],
        query_gain=None if gain is None else gain[:, :, tokens:],
    )


def _beginning(seen: LayerActivations, tokens: int) -> LayerActivations:
    """The first tokens of the first prompt alone."""

    def cut(part: Tensor) -> Tensor:
        return part[:1, ..., :tokens, :]

    names = ("query_raw", "key_raw", "query", "key", "value", "query_gain", "key_gain")
    parts: dict[str, Any] = {name: getattr(seen, name) for name in names}
    return replace(
        seen,
        **{name: None if part is None else cut(part) for name, part in parts.items()},
        turn=Turn(cut(seen.turn.own), cut(seen.turn.cross), seen.turn.partner),
        visible=cut(seen.visible)[..., :tokens],
    )


def test_fast_repeats_to_the_bit_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(24, **CASES["everything"])
    grams = query_key.head_grams(layer.output.float(), GROUPS)
    first = fast.fast_key_importance(layer.seen(), layer.real(), grams)
    assert torch.equal(first, fast.fast_key_importance(layer.seen(), layer.real(), grams))
    monkeypatch.setattr(fast, "_BLOCK", 500)
    monkeypatch.setattr(fast, "_ROWS", 5)
    monkeypatch.setattr(fast, "_SHORT", 0)
    again = fast.fast_key_importance(layer.seen(), layer.real(), grams)
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_paper_equals_its_formulas(case: str) -> None:
    layer = Layer(11, **CASES[case])
    query, key = layer.by_definition(lambda after, before: (after - before).norm())
    seen, real = layer.seen(), layer.real()
    _close(paper.paper_query_importance(seen, real)[0], query, 1e-6)
    _close(paper.paper_key_importance(seen, real)[0], key, 1e-6)
    attended = layer.attention(layer.logits()) @ layer.value.repeat_interleave(PER_GROUP, 0)
    value = [
        sum(
            float(attended[h, :, d].square().sum())
            for h in range(g * PER_GROUP, (g + 1) * PER_GROUP)
        )
        ** 0.5
        for g in range(GROUPS)
        for d in range(DIM)
    ]
    mine = paper.paper_value_importance(seen.attended, GROUPS, real)
    _close(mine[0], torch.tensor(value, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("case", ["plain", "window", "cap", "no rotary"])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_released_code_equals_a_transcription(case: str, scale: float) -> None:
    layer = Layer(9, scale, **CASES[case])
    query = _apply(layer.turn, layer.query)
    key = _apply(layer.turn, layer.key).repeat_interleave(PER_GROUP, 0)
    logits = layer.logits()
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    hidden = ~layer.visible
    before = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    product = query.mT.unsqueeze(-1) * key.mT.unsqueeze(-2)
    after = (logits.unsqueeze(1) - product).masked_fill(hidden.unsqueeze(1), -torch.inf).softmax(-1)
    score = (after - before.unsqueeze(1)).square().sum(dim=(-2, -1)).flatten()
    attended = before @ layer.value.repeat_interleave(PER_GROUP, 0)
    output = attended.abs().sum(dim=1).flatten()
    seen, real = layer.seen(), layer.real()
    _close(released_code.released_query_score(seen, real)[0], score, 1e-9)
    for mine, repeated in (
        (released_code.released_key_score(seen, real)[0], score),
        (released_code.released_value_score(seen.attended, GROUPS, real)[0], output),
    ):
        # The rows that the files name: the top indices of the repeated axis, divided by n.
        for count in (1, 5, 17):
            rows = {int(index) // PER_GROUP for index in repeated.topk(count).indices}
            assert set(mine.topk(len(rows)).indices.tolist()) == rows
    up = torch.randn(1, 9, 4)
    summed = released_code.released_ffn_score(up, real)
    torch.testing.assert_close(summed, up.abs().sum(dim=1))
