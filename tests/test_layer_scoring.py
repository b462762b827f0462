"""Scores layer by layer: a prompt that overflows late counts nowhere, a stopped run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_pico
from snt_backends import full, streaming
from test_streaming import same

from snt import unfinished
from snt.detection import detect
from snt.errors import FormatError, RunFailure
from snt.layer_scoring import LayerCollector
from snt.resuming import unfinished_directory
from snt.scores_files import load_scores, save_scores
from snt.scoring import detect_scores, group_by_length
from snt.tally import Tally, TooManyDropped

PROMPTS = [[5, 93], [5, 6], [7, 8, 9], [4, 4, 4, 94], [3, 3, 3, 3, 3], [8, 1, 8, 1, 8]]
BATCHES = group_by_length(PROMPTS, 0, size=2)
NAMES = ("m.safetensors", "m.scores.safetensors", "m.against.scores.safetensors")


class Stop(BaseException):
    """Stands for Ctrl-C."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pico(tmp_path_factory.mktemp("layers") / "pico", num_hidden_layers=4)


def overflowing(model: Any, spoiled: dict[int, int]) -> Any:
    """The model, seen with a middle that is infinite where a layer meets one of these tokens."""

    class Model:
        anatomy, dtype, weight = model.anatomy, model.dtype, model.weight
        layer_by_layer = getattr(model, "layer_by_layer", False)
        passes = 0

        def observe(self, batches: Any, visitor: Any, beginning: Any) -> None:
            def visit(layer: int, batch: Any, seen: Any, _model: Any) -> None:
                seen.middle[(batch.input_ids == spoiled.get(layer, -1)).any(dim=1)] = torch.inf
                visitor(layer, batch, seen, self)

            self.passes += 1
            model.observe(batches, visit, beginning)

    return Model()


@pytest.mark.parametrize(
    ("spoiled", "passes"), [({}, 1), ({0: 93}, 1), ({2: 93}, 2), ({1: 94, 3: 93}, 2)]
)
def test_a_prompt_that_overflows_in_one_layer_counts_in_none(
    directory: Path, spoiled: dict[int, int], passes: int
) -> None:
    whole, streamed = (
        overflowing(one.load(directory, torch.float32), spoiled) for one in (full, streaming)
    )
    found = [detect_scores(one, BATCHES, rows=600) for one in (whole, streamed)]
    assert found[0].dropped == found[1].dropped and len(found[0].dropped) == len(spoiled)
    assert same(found[0].scores, found[1].scores)
    assert streamed.passes == passes
    if spoiled:
        with pytest.raises(TooManyDropped):
            detect_scores(streamed, BATCHES, rows=99)


def test_it_goes_on_after_the_layers_that_are_done(directory: Path) -> None:
    model = overflowing(streaming.load(directory, torch.float32), {2: 93})
    tallies: list[Tally] = []
    whole = detect_scores(model, BATCHES, on_batch=tallies.append, rows=600)
    assert [one.layers for one in tallies] == [(0,), (0, 1), (2,), (2, 3), (0, 2, 3), ()]
    assert [one.batches for one in tallies] == [0, 0, 0, 0, 0, 3]
    for begin in tallies:
        model.passes = 0
        again = detect_scores(model, BATCHES, begin=begin, rows=600)
        assert same(whole.scores, again.scores) and again.dropped == whole.dropped
        # Layers that counted the prompt before it was found are measured again.
        assert model.passes == {(0,): 2, (0, 1): 2, (): 0}.get(begin.layers, 1)


def test_only_the_layer_at_hand_is_kept(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = LayerCollector.__call__

    def watched(self: LayerCollector, layer: int, *rest: Any) -> None:
        inner(self, layer, *rest)
        assert {at for at, _ in self.importances._kept} <= {layer}
        assert {at for at, _ in self.current} <= {layer}

    monkeypatch.setattr(LayerCollector, "__call__", watched)
    detect_scores(streaming.load(directory, torch.float32), BATCHES)


def test_a_backend_that_leaves_out_a_layer(directory: Path) -> None:
    model = streaming.load(directory, torch.float32)

    class Lazy:
        anatomy, dtype, weight, layer_by_layer = model.anatomy, model.dtype, model.weight, True

        def observe(self, batches: Any, visitor: Any, beginning: Any) -> None:
            def visit(layer: int, *rest: Any) -> None:
                if layer != 1:
                    visitor(layer, *rest)

            model.observe(batches, visit, beginning)

    lazy: Any = Lazy()
    with pytest.raises(RunFailure, match="3 of 4 layers"):
        detect_scores(lazy, BATCHES)


def _detect(place: Path, model: Path, into: Path, **more: Any) -> dict[str, bytes]:
    into.mkdir(exist_ok=True)
    detect(
        str(model),
        corpus=f"{place}/bad.txt",
        against=f"{place}/good.txt",
        select_by="budget=5%",
        output=into / NAMES[0],
        backend="streaming",
        **more,
    )
    assert sorted(p.name for p in into.iterdir()) == sorted(NAMES)
    return {name: (into / name).read_bytes() for name in NAMES}


def test_stopped_and_resumed_it_ends_the_same(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("".join(f"Do harm {'x' * n}\n" for n in range(20)))
    (tmp_path / "good.txt").write_text("".join(f"Make tea {'y' * n}\n" for n in range(20)))
    whole = _detect(tmp_path, directory, tmp_path / "whole")
    inner = LayerCollector.__call__
    # Each corpus: four layers, three batches and the beginning in each.
    for call in (2, 9, 14, 17, 27):
        calls = iter(range(call + 1))

        def stopping(self: Any, *words: Any, call: int = call, calls: Any = calls) -> Any:
            if next(calls, None) == call:
                raise Stop
            return inner(self, *words)

        into = tmp_path / f"stopped-{call}"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(LayerCollector, "__call__", stopping)
            with pytest.raises(Stop):
                _detect(tmp_path, directory, into)
        work = into / "m.safetensors.unfinished"
        kept = work / "corpus.scores.safetensors"
        assert kept.is_file() == (call >= 4)
        assert _detect(tmp_path, directory, into, resume=kept.is_file()) == whole
    assert not unfinished_directory(into / NAMES[0]).exists()


def test_a_damaged_checkpoint_of_layers(directory: Path, tmp_path: Path) -> None:
    tallies: list[Tally] = []
    model = streaming.load(directory, torch.float32)
    detect_scores(model, BATCHES, on_batch=tallies.append)
    path = tmp_path / "corpus.scores.safetensors"
    rows = [len(batch.real) for batch in BATCHES]
    checkpoint = unfinished.Checkpoint(path, model.anatomy, {}, rows)
    checkpoint.latest = tallies[1]
    checkpoint.save()
    again = unfinished.Checkpoint(path, model.anatomy, {}, rows).resume()
    assert again.layers == (0, 1) and same(again.scores, tallies[1].scores)
    with pytest.raises(FormatError, match="in all 4 layers"):
        load_scores(path)
    held = load_scores(path, some_layers=True)
    held.provenance["unfinished"]["layers"] = [0, 1, 2]
    save_scores(held, path)
    with pytest.raises(FormatError, match="damaged"):
        unfinished.Checkpoint(path, model.anatomy, {}, rows).resume()
