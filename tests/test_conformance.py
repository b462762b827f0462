"""The conformance kit: the built-in backend passes, every way to be wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from snt_backends.full import FullModel, fast_dtype
from snt_backends.full import load as load_full

from snt.backend import ABILITIES, Batch, get_backend
from snt.testing import BackendFault, check_backend


def wrong(model: type[FullModel] = FullModel, **parts: Any) -> Any:
    """A backend whose models are of a class of their own, or that has other parts."""

    def load(directory: Path, dtype: Any = None) -> FullModel:
        held = load_full(directory, dtype)
        return model(held.model, held.tokenizer, held.anatomy, held.device)

    whole = {"summary": "of a test", "load": load, "fast_dtype": fast_dtype, **parts}
    return SimpleNamespace(name="wrong", **whole)


class LongContext(FullModel):
    context = 999


class Rounded(FullModel):
    def weight(self, layer: int, module: str) -> Any:
        return super().weight(layer, module).bfloat16().float()


class SeesPadding(FullModel):
    def hidden(self, batch: Batch) -> Any:
        return super().hidden(Batch(batch.input_ids, torch.ones_like(batch.real)))


class Backwards(FullModel):
    def observe(self, batches: Any, visitor: Any, beginning: Any = None) -> None:
        super().observe(list(batches)[::-1], visitor, beginning)


class NoBeginning(FullModel):
    def observe(self, batches: Any, visitor: Any, beginning: Any = None) -> None:
        super().observe(batches, visitor, None)


class WrongNorms(FullModel):
    def observe(self, batches: Any, visitor: Any, beginning: Any = None) -> None:
        def visit(layer: int, batch: Batch, seen: Any, model: Any) -> None:
            visitor(layer, batch, replace(seen, middle=2 * seen.middle), model)

        super().observe(batches, visit, beginning)


class Drifts(FullModel):
    def training(self) -> Any:
        with torch.no_grad():
            self.model.model.norm.weight += 0.1
        return super().training()


class Copies(FullModel):
    """Hands out modules that are not those the model runs."""

    def module(self, layer: int, module: str) -> Any:
        found: Any = super().module(layer, module)
        if not isinstance(found, torch.nn.Linear):
            return found
        copy = torch.nn.Linear(found.in_features, found.out_features, bias=False)
        return copy.requires_grad_(False)


class NeverStops(FullModel):
    def generate(self, batch: Batch, new_tokens: int, stop_ids: Any, *rest: Any) -> Any:
        return super().generate(batch, new_tokens, [], *rest)


class Raises(FullModel):
    def generate(self, *_: Any) -> Any:
        raise ZeroDivisionError("out of tokens")


@pytest.mark.parametrize(
    ("name", "rounds", "lacks"),
    [
        ("full", {}, ()),
        ("multi-gpu", {}, ()),
        ("fsdp", {}, ()),
        ("streaming", {}, ("deltas_train", "generates")),
        ("int8", {"exact": False}, ()),
        # Four bits of a model of 16 columns: a merged patch is rounded with all that was there.
        ("int4", {"exact": False, "tolerance": 0.2}, ()),
    ],
)
def test_built_in_backends_pass(name: str, rounds: Any, lacks: tuple[str, ...]) -> None:
    found = check_backend(get_backend(name), **rounds)
    assert not found.faults and tuple(found.left_out) == lacks
    assert len(found.outcomes) + len(lacks) == 11
    assert "importances_equal_the_oracle: ok" in str(found)


@pytest.mark.parametrize(
    ("backend", "check", "said"),
    [
        (wrong(summary="two\nlines"), "describes_itself", "not one line"),
        (wrong(abilities=("fly", *ABILITIES)), "describes_itself", "fly"),
        (wrong(fast_dtype=lambda: "float32"), "describes_itself", "no torch.dtype"),
        (wrong(LongContext), "loads", "context is 999, not 256"),
        (wrong(Rounded), "weights_are_the_checkpoint_s", "further off than 0.0001"),
        (wrong(SeesPadding), "hidden_and_logits", "padded on the left"),
        (wrong(Backwards), "shows_every_layer", "batches out of order"),
        (wrong(NoBeginning), "shows_every_layer", "batches out of order"),
        (wrong(WrongNorms), "importances_equal_the_oracle", "importances of ffn in layer 0"),
        (wrong(Drifts), "deltas_train", "training changed the weights model.norm.weight"),
        (wrong(Copies), "deltas_train", "no gradient|does not require grad"),
        (wrong(Copies), "patches_act", "changes nothing"),
        (wrong(Copies), "neurons_go_and_come_back", "without the neurons"),
        (wrong(NeverStops), "generates", "that has ended is not filled"),
        (wrong(Raises), "generates", "ZeroDivisionError: out of tokens"),
    ],
)
def test_every_way_to_be_wrong(
    monkeypatch: pytest.MonkeyPatch, backend: Any, check: str, said: str
) -> None:
    # One check of all: the others cost time and are held by the test above.
    from snt.testing import conformance

    chosen = [one for one in conformance._CHECKS if one[0].__name__ == check]
    monkeypatch.setattr(conformance, "_CHECKS", tuple(chosen))
    with pytest.raises(BackendFault, match=rf"(?s)1 of 1 checks failed\n{check}: .*({said})"):
        check_backend(backend)


def _only(check: str) -> Callable[[Any], bool]:
    return lambda pair: bool(pair[0].__name__ == check)


def test_a_family_that_is_not_served_must_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from snt.testing import conformance

    own = wrong()
    pico_alone = own.load

    def load(directory: Path, dtype: Any = None) -> Any:
        return None if directory.name == "other" else pico_alone(directory, dtype)

    chosen = tuple(filter(_only("other_families_are_refused"), conformance._CHECKS))
    monkeypatch.setattr(conformance, "_CHECKS", chosen)
    with pytest.raises(BackendFault, match="not served was loaded"):
        check_backend(wrong(load=load))
    with pytest.raises(BackendFault, match="a pico Llama cannot be loaded: KeyError"):
        check_backend(wrong(load=lambda *_: {}["model"]))


def test_what_is_not_offered_is_left_out() -> None:
    found = check_backend(wrong(NeverStops, abilities=("detect",)))
    assert found.left_out == (
        *("hidden_and_logits", "deltas_train", "patches_act", "neurons_go_and_come_back"),
        "generates",
    )
    assert "generates: not offered" in str(found)


def test_a_backend_that_rounds_is_held_to_a_norm() -> None:
    with pytest.raises(BackendFault, match="weights_are_the_checkpoint_s"):
        check_backend(wrong(Rounded, abilities=("score",)))
    assert not check_backend(wrong(Rounded), exact=False, tolerance=0.02).faults
