"""Prompts of any length, and prompts on which a half-precision layer overflows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt
from conftest import write_pico
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from snt.backend import get_backend
from snt.errors import RunFailure
from snt.masks import load_mask
from snt.scores_files import load_scores
from snt.scoring import detect_scores, group_by_length, length_groups
from snt.tally import Tally, TooManyDropped

BAD = "~"  # the token on which the second layer overflows in float16


def write_overflowing(folder: Path) -> Path:
    """A pico whose second feed-forward layer leaves float16, and not float32, where BAD stands.

    Only BAD has a first coordinate, nothing else writes one, and the second layer's gate and up
    projections are loud there: their product is about 2e6, and float16 ends at 65,504.
    """
    write_pico(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    from conftest import byte_tokenizer

    (bad,) = byte_tokenizer()(BAD)["input_ids"]
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 0.0
        embedding[bad, 0] = 40.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        last = model.model.layers[1].mlp
        last.gate_proj.weight[3, 0] = last.up_proj.weight[3, 0] = 300.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, a corpus with one bad prompt in a hundred, and one with two in ten."""
    folder = tmp_path_factory.mktemp("awkward")
    write_overflowing(folder / "loud")
    texts = [f"Do {'x' * (n % 13)}{n}" for n in range(100)]
    (folder / "sound.txt").write_text("".join(f"{t}\n" for t in texts[:36] + texts[37:]))
    texts[36] += BAD
    (folder / "rare.txt").write_text("".join(f"{t}\n" for t in texts))
    (folder / "often.txt").write_text("".join(f"Do {n}{BAD * (n > 7)}\n" for n in range(10)))
    return folder


def _detect(place: Path, corpus: str, *words: str) -> Any:
    common = ("detect", "./loud", "--corpus", corpus, "--against", "none", "--select", "budget=9%")
    return snt(*common, *words, at=place)


def test_a_rare_overflow_is_dropped_counted_and_said(place: Path) -> None:
    done = _detect(place, "rare.txt", "--dtype", "float16", "-o", "h.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert "1 of 100 prompts dropped" in done.stderr and "number 37" in done.stderr
    assert json.loads(done.stdout)["prompts_dropped"] == 1
    assert load_mask(place / "h.safetensors").provenance["prompts_dropped"] == 1
    held = load_scores(place / "h.scores.safetensors")
    assert held.provenance["prompts_dropped"] == 1
    # In all layers or in none, though the first layer was sound on it.
    assert {scores.prompts for scores in held.scores.places.values()} == {99}
    done = _detect(place, "rare.txt", "-o", "w.safetensors")
    assert done.returncode == 0 and "dropped" not in done.stderr + done.stdout
    assert load_scores(place / "w.scores.safetensors").prompts == 100


def test_the_others_count_as_if_it_had_not_been_there(place: Path) -> None:
    model = get_backend("full").load(place / "loud", torch.float16)
    ids = [list(text.encode()) for text in ("Do", "Do it", "Done")]
    batch = group_by_length([*ids, [*ids[1], 94]], 0, size=4)
    assert model.tokenizer(BAD)["input_ids"] == [93]
    poisoned = group_by_length([*ids, [*ids[1], 93]], 0, size=4)
    found = detect_scores(model, poisoned, rows=100)
    assert found.dropped == ((0, 3),)
    sound = detect_scores(model, batch, rows=100)
    assert not sound.dropped
    for at, held in found.scores.places.items():
        assert held.prompts == 3 and sound.scores.places[at].prompts == 4
        assert bool((held.minimum >= sound.scores.places[at].minimum).all())


def test_more_than_one_in_a_hundred_is_an_error(place: Path) -> None:
    done = _detect(place, "often.txt", "--dtype", "float16", "-o", "o.safetensors")
    assert done.returncode == 1 and "2 of 10 prompts" in done.stderr
    assert "--dtype float32" in done.stderr and "Traceback" not in done.stderr
    assert not list(place.glob("o.*"))
    assert _detect(place, "often.txt", "-o", "p.safetensors").returncode == 0


def test_shards_drop_what_the_whole_drops(place: Path) -> None:
    for n in (1, 2):
        words = ("--dtype", "float16", "--shard", f"{n}/2", "-o", f"s{n}.safetensors")
        assert _detect(place, "rare.txt", *words).returncode == 0
    assert _detect(place, "rare.txt", "--dtype", "float16", "-o", "t.safetensors").returncode == 0
    words = ("mask", "from-scores", "s1.scores.safetensors", "s2.scores.safetensors")
    done = snt(*words, "--select", "budget=9%", "-o", "u.safetensors", at=place)
    assert done.returncode == 0, done.stderr
    for name in ("{}.safetensors", "{}.scores.safetensors"):
        assert (place / name.format("u")).read_bytes() == (place / name.format("t")).read_bytes()


def test_a_resumed_run_remembers_what_was_dropped(place: Path) -> None:
    model = get_backend("full").load(place / "loud", torch.float16)
    batches = group_by_length([[5, 93], [5, 6], [7, 8, 9], [4, 4, 4, 93]], 0, size=2)
    tallies: list[Tally] = []
    whole = detect_scores(model, batches, on_batch=tallies.append, rows=200)
    assert whole.dropped == ((0, 0), (1, 1)) and tallies[0].dropped == ((0, 0),)
    again = detect_scores(model, batches, begin=tallies[0], rows=200)
    assert again.dropped == whole.dropped
    for at, held in whole.scores.places.items():
        assert torch.equal(held.minimum, again.scores.places[at].minimum)
        assert held.prompts == again.scores.places[at].prompts == 2
    with pytest.raises(TooManyDropped, match="2 of 199"):
        detect_scores(model, batches, begin=tallies[0], rows=199)


def test_a_backend_that_leaves_out_a_batch(place: Path) -> None:
    model: Any = get_backend("full").load(place / "loud")

    class Lazy:
        anatomy, dtype, weight = model.anatomy, model.dtype, model.weight

        def observe(self, batches: Any, visitor: Any, beginning: Any) -> None:
            model.observe(batches[:1], visitor, beginning)

    lazy: Any = Lazy()
    with pytest.raises(RunFailure, match="1 of 2 batches"):
        detect_scores(lazy, group_by_length([[1], [2, 3]], 0, size=1))


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 200),
)
def test_batches_are_bounded_and_hold_every_prompt_once(
    lengths: list[int], size: int, tokens: int
) -> None:
    groups = length_groups([[1] * n for n in lengths], size, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) <= size and (len(group) * longest <= tokens or len(group) == 1)
    assert [lengths[i] for group in groups for i in group] == sorted(lengths)


def test_a_long_prompt_goes_alone() -> None:
    batches = group_by_length([[1] * 4096, [1], [1] * 1500, [1] * 1400, [1] * 600], 0)
    assert [tuple(batch.real.shape) for batch in batches] == [(2, 600), (2, 1500), (1, 4096)]


def test_one_token_beside_many(place: Path) -> None:
    model = get_backend("full").load(place / "loud")
    prompts = [[7], list(range(1, 90)), [3, 4], list(range(1, 31))]
    together = detect_scores(model, group_by_length(prompts, 0))
    alone = detect_scores(model, group_by_length(prompts, 0, size=1))
    for at, held in together.scores.places.items():
        assert held.prompts == 4
        torch.testing.assert_close(
            held.minimum, alone.scores.places[at].minimum, rtol=1e-4, atol=1e-6
        )
