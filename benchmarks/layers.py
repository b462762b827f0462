"""Single layers: one of Llama-3-8B's sizes, and one to compare with the published way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import materialised
from benchmarks.peak import peak_of
from benchmarks.ratios import Row, in_turn, ratios
from snt.backend import Batch, LayerActivations
from snt.importance.by_name import Importances
from snt.importance.fast import fast_key_importance, fast_query_importance, group_terms
from snt.importance.query_key import head_factors, head_grams, key_importance, query_importance
from snt.scores import NeuronScores

LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def one_layer(sizes: dict[str, int], tokens: int) -> tuple[Any, Batch]:
    """A random Llama of one layer in the `full` backend, and a prompt of random tokens."""
    from snt_backends.full import FullModel
    from transformers import LlamaConfig, LlamaForCausalLM

    from snt.anatomy import anatomy_of

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, num_hidden_layers=1, max_position_embeddings=8192, **sizes)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    loaded = FullModel(model, None, anatomy_of(config), torch.device("cpu"))
    ids = torch.randint(0, 256, (1, tokens))
    return loaded, Batch(ids, torch.ones(1, tokens, dtype=torch.bool))


def large(rounds: int) -> list[Row]:
    """Exact detection in one layer of an 8B model; what depends on weights alone is kept."""
    model, batch = one_layer(LARGE, 64)
    importances = Importances("exact", ("ffn", "q", "k", "v"))

    def visit(layer: int, batch: Batch, seen: LayerActivations, loaded: Any) -> None:
        for importance in importances(layer, batch, seen, loaded).values():
            NeuronScores.of(importance)

    def forward() -> None:
        with torch.inference_mode():
            model.forward(batch)

    seconds = in_turn(
        {"forward": forward, "exact": lambda: model.observe([batch], visit)}, 2 * rounds
    )
    return [
        Row(
            "exact, one layer at Llama-3-8B sizes, total / forward",
            ratios(seconds["exact"], seconds["forward"]),
            1.8,
            True,
            "4096, 32/8 heads, 14336; one prompt of 64 tokens; random weights, float32",
        )
    ]


def activations(tokens: int) -> tuple[LayerActivations, torch.Tensor, torch.Tensor]:
    """Of one layer at the embedded model's sizes; its padding mask and output projection."""
    model, batch = one_layer(SMALL, tokens)
    seen: list[LayerActivations] = []
    model.observe([batch], lambda _layer, _batch, activations, _model: seen.append(activations))
    return seen[0], batch.real, model.weight(0, model.anatomy.family.output)


def work(name: str, tokens: int) -> Callable[[], object]:
    """Queries and keys of one layer, by one of three ways; the weights' terms are made before."""
    seen, real, output = activations(tokens)
    heads, groups = seen.query.shape[1], seen.key.shape[1]
    per_head, per_group = head_factors(output, heads), head_factors(output, groups)
    grams = head_grams(output, groups)

    def exact() -> object:
        return query_importance(seen, real, per_head), key_importance(seen, real, per_group)

    def fast() -> object:
        shared = group_terms(seen, real, grams)
        query = fast_query_importance(seen, real, grams, shared=shared)
        return query, fast_key_importance(seen, real, grams, shared=shared)

    def published() -> object:
        return materialised.query_scores(seen), materialised.key_scores(seen)

    made = {"exact": exact, "fast": fast, "published": published}[name]

    def run() -> object:
        with torch.inference_mode():
            return made()

    return run


def _prepared(name: str, tokens: int) -> Callable[[], object]:
    # Libraries keep buffers from their first use on; a short prompt makes them ask for those.
    work(name, 16)()
    return work(name, tokens)


def against_published(rounds: int, tokens: int = 256) -> list[Row]:
    """Time and memory of the maths alone, on the same activations."""
    names = ("exact", "fast", "published")
    seconds = in_turn({name: work(name, tokens) for name in names}, rounds)
    memory = {name: peak_of(_prepared, name, tokens) for name in ("exact", "published")}
    note = f"q and k of one layer at the embedded model's sizes, {tokens} tokens, maths alone"
    return [
        Row(
            "published way / exact, seconds",
            ratios(seconds["published"], seconds["exact"]),
            1.0,
            False,
            note,
        ),
        Row(
            "published way / fast, seconds",
            ratios(seconds["published"], seconds["fast"]),
            10.0,
            False,
            note,
        ),
        Row(
            "published way / exact, memory above the model",
            (memory["published"] / memory["exact"],),
            20.0,
            False,
            f"{memory['published'] >> 20} and {memory['exact'] >> 20} MiB",
        ),
    ]


def long(tokens: int = 4096) -> list[Row]:
    """Exact queries and keys of a long prompt: memory must stay bounded."""
    peak = peak_of(_prepared, "exact", tokens)
    square = SMALL["num_attention_heads"] * tokens * tokens * 4
    return [
        Row(
            f"exact at {tokens} tokens, memory / one heads × T × T tensor",
            (peak / square,),
            0.5,
            True,
            f"{peak >> 20} and {square >> 20} MiB; q and k of one layer",
        )
    ]
