"""One layer at a time: the bits of the whole model, and nothing held that need not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from family_models import FAMILIES, MIXTURES, family_model
from safetensors.torch import load_file, save_file
from snt_backends import full, streaming

from snt.ablation import deactivated
from snt.backend import Batch, get_backend
from snt.chat import Chat
from snt.detection import detect
from snt.errors import FormatError, RequestError
from snt.evaluation.perplexity import perplexity
from snt.evaluation.refusal_odds import refusal_log_odds, tree_of
from snt.masks import load_mask
from snt.objective import right_padded
from snt.opening import ModelChoice, open_model
from snt.scores import Scores
from snt.scoring import common_beginning, detect_scores, group_by_length
from snt.verification_arms import VerifySettings

DENSE = [name for name in FAMILIES if name not in MIXTURES]
_DRAW = torch.Generator().manual_seed(2)
_ALIKE = list(range(40, 52))
PROMPTS = [
    [*_ALIKE, *torch.randint(1, 250, (n,), generator=_DRAW).tolist()] for n in (3, 9, 5, 1, 7, 4)
]
BATCHES = group_by_length(PROMPTS, 0, size=2)


def write(model_type: str, folder: Path, **more: Any) -> Path:
    """A family's tiny model in shards of a few tensors each."""
    family_model(model_type, **more).save_pretrained(folder, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


def same(one: Scores, other: Scores) -> bool:
    return one.places.keys() == other.places.keys() and all(
        torch.equal(getattr(held, part), getattr(other.places[place], part))
        for place, held in one.places.items()
        for part in ("minimum", "worst_rank", "histogram")
    )


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("streamed"), num_hidden_layers=4)


@pytest.mark.parametrize("model_type", DENSE)
def test_every_family_to_the_bit(model_type: str, tmp_path: Path) -> None:
    write(model_type, tmp_path)
    whole, streamed = (one.load(tmp_path, torch.float32) for one in (full, streaming))
    assert streamed.parameters == whole.parameters
    for beginning in (None, common_beginning(BATCHES)):
        found = [detect_scores(m, BATCHES, beginning=beginning) for m in (whole, streamed)]
        assert same(found[0].scores, found[1].scores)
    left = [Batch(b.input_ids.flip(1), b.real.flip(1)) for b in BATCHES]
    for batch, hidden in zip(
        [*BATCHES, *left], streamed.hidden_states([*BATCHES, *left]), strict=True
    ):
        wanted = whole.hidden(batch)
        assert torch.equal(hidden[batch.real], wanted[batch.real])
        torch.testing.assert_close(streamed.logits(hidden), whole.logits(wanted))
    module = whole.anatomy.family.output
    assert torch.equal(streamed.weight(1, module), whole.weight(1, module))
    assert streamed.weight_shape(1, module) == whole.weight_shape(1, module)


@pytest.mark.parametrize("importance", ["fast", "paper", "released-code"])
def test_every_importance(llama: Path, importance: str) -> None:
    models = [one.load(llama, torch.float32) for one in (full, streaming)]
    found = [detect_scores(m, BATCHES, importance=importance).scores for m in models]
    assert same(*found)


def test_half_precision_is_converted_as_the_whole_model_is(llama: Path, tmp_path: Path) -> None:
    whole = full.load(llama, torch.bfloat16)
    whole.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for dtype in (None, torch.float32):
        models = [one.load(tmp_path, dtype) for one in (full, streaming)]
        assert models[1].dtype == models[0].dtype == (dtype or torch.bfloat16)
        found = [detect_scores(m, BATCHES).scores for m in models]
        assert same(*found)


def test_hidden_states_on_disk(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = detect_scores(streaming.load(llama), BATCHES).scores
    monkeypatch.setattr(streaming, "HIDDEN_BYTES", 0)
    on_disk = detect_scores(streaming.load(llama), BATCHES).scores
    assert same(in_memory, on_disk)


def test_one_layer_holds_weights_and_none_afterwards(llama: Path) -> None:
    model = streaming.load(llama, torch.float32)

    def held() -> list[int]:
        modules = enumerate(model.layers.modules)
        return [n for n, one in modules if not all(p.is_meta for p in one.parameters())]

    seen = []

    def visit(layer: int, *_: Any) -> None:
        assert held() == [layer]
        seen.append(layer)

    model.observe(BATCHES, visit)
    assert seen == [layer for layer in range(4) for _ in BATCHES] and not held()

    def fail(*_: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        model.observe(BATCHES, fail)
    assert not held()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.skeleton.modules())
    waiting = model.hidden_states(BATCHES)
    next(waiting)
    waiting.close()
    assert not held()


def test_a_detection_writes_the_same_mask(pico: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("".join(f"Do harm {'x' * n}\n" for n in range(20)))
    (tmp_path / "good.txt").write_text("".join(f"Make tea {'y' * n}\n" for n in range(20)))
    given: dict[str, Any] = {"corpus": f"{tmp_path}/bad.txt", "against": f"{tmp_path}/good.txt"}
    for backend in ("full", "streaming"):
        detect(
            str(pico), output=tmp_path / f"{backend}.safetensors", backend=backend,
            select_by="budget=5%", **given,
        )  # fmt: skip
    masks = [load_mask(tmp_path / f"{one}.safetensors") for one in ("full", "streaming")]
    assert masks[0].neurons.keys() == masks[1].neurons.keys()
    assert all(torch.equal(at, masks[1].neurons[key]) for key, at in masks[0].neurons.items())
    assert masks[1].provenance["backend"] == "streaming"
    # What is deactivated in a layer is so while the layer is there.
    ids = right_padded([_ALIKE, _ALIKE[:5]], 0)
    whole, streamed = (get_backend(one).load(pico) for one in ("full", "streaming"))
    before = streamed.hidden(ids)
    with deactivated(whole, masks[0]), deactivated(streamed, masks[1]):
        assert torch.equal(whole.hidden(ids)[ids.real], streamed.hidden(ids)[ids.real])
        assert not torch.equal(before, streamed.hidden(ids))
    assert torch.equal(before, streamed.hidden(ids))


def test_perplexity_and_first_tokens_read_every_layer_once(
    pico: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [open_model(ModelChoice(str(pico), one)) for one in ("full", "streaming")]
    texts = [f"A line of some length, number {n}, and more of it." for n in range(10)]
    found, odds = [], []
    reads: list[int] = []
    layers: Any = type(opened[1].model.layers)  # type: ignore[attr-defined]
    read = layers.read
    monkeypatch.setattr(
        layers, "read", lambda self, at, into: reads.append(at) or read(self, at, into)
    )
    for one in opened:
        chat = Chat(one.model.tokenizer, one.model.context)
        found.append(perplexity(one.model, chat, texts))
        odds.append(refusal_log_odds(one.model, chat, texts[:5], tree_of(chat), batch_size=8))
    assert found[0].nats == pytest.approx(found[1].nats, rel=1e-4)
    assert odds[0] == pytest.approx(odds[1], rel=1e-4)
    assert reads == [0, 1, 0, 1]


def test_what_it_cannot_do_names_who_can(pico: Path, tmp_path: Path) -> None:
    model = streaming.load(pico)
    for ask in (
        lambda: model.generate(BATCHES[0], 4, [0]),
        model.weight_digests,
        model.training,
    ):
        with pytest.raises(RequestError, match="--backend full"):
            ask()
    output = tmp_path / "m.safetensors"
    with pytest.raises(RequestError, match="'streaming' cannot generate.*--backend .*full"):
        detect(str(pico), output=output, backend="streaming", verify=VerifySettings())
    write("mixtral", tmp_path)
    with pytest.raises(RequestError, match="experts.*--backend full"):
        streaming.load(tmp_path)


def test_damaged_checkpoints(pico: Path, tmp_path: Path) -> None:
    for file in pico.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, key: weights[key][:5]}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=rf"{key} has the shape \(5, 32\)"):
        streaming.load(tmp_path).hidden(BATCHES[0])
    kept = {name: tensor for name, tensor in weights.items() if name != key}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=f"'{key}' is in none"):
        streaming.load(tmp_path).hidden(BATCHES[0])
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        streaming.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    with pytest.raises(FormatError, match="no file beside it"):
        streaming.load(tmp_path)
