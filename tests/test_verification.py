"""`snt detect --verify` end to end: a model whose refusals hang on planted neurons, and another.

The planted model sees a mark in the request ("!"), carries it to the last position by one value
neuron, and there (at a line break) two feed-forward neurons of layer 1 turn it into the first
letter of "Sorry".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Done, snt
from conftest import byte_tokenizer, write_pico
from transformers import AutoModelForCausalLM

from snt.errors import NegativeResult, RequestError
from snt.masks import NeuronMask, load_mask, save_mask
from snt.random_masks import random_like

MARK, CARRIED, REFUSAL, END = (
    28,
    29,
    30,
    31,
)  # Residual coordinates that nothing else reads or writes.
PLANTED = (7, 90)
SUBJECTS = ("tea", "a boat", "the moon", "my door", "six cats", "a song", "rain", "the bus")
ARMS = ["none", "mask", *(f"random-{n}" for n in range(1, 6)), "magnitude", "foundation"]


def write_planted(folder: Path) -> Path:
    """A pico Llama whose refusals are known to hang on one v and two ffn neurons."""
    write_pico(folder, intermediate_size=128)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = byte_tokenizer()
    tokens = {letter: tokenizer(letter)["input_ids"][0] for letter in "!S\n"}
    own = slice(MARK, END + 1)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, own] = 0.0
        model.model.embed_tokens.weight[tokens["!"], MARK] = 2.0
        model.model.embed_tokens.weight[tokens["\n"], END] = 1.0
        model.lm_head.weight[:, own] = 0.0
        model.lm_head.weight[tokens["S"], REFUSAL] = 1.5
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            inward = (attention.q_proj, attention.k_proj, attention.v_proj)
            for module in (*inward, mlp.gate_proj, mlp.up_proj):
                module.weight[:, own] = 0.0
            for module in (attention.o_proj, mlp.down_proj):
                module.weight[own] = 0.0
        attention = model.model.layers[0].self_attn
        attention.q_proj.weight[:8] = 0.0  # Head 0 looks at every position alike.
        attention.v_proj.weight[0] = 0.0
        attention.v_proj.weight[0, MARK] = 2.0
        attention.o_proj.weight[:, 0] = 0.0
        attention.o_proj.weight[CARRIED, 0] = 2.0
        attention.o_proj.weight[:, 8] = 0.0  # Head 1 shares the value, and leaves it alone.
        mlp = model.model.layers[1].mlp
        for neuron in PLANTED:
            for module, reads in ((mlp.gate_proj, END), (mlp.up_proj, CARRIED)):
                module.weight[neuron] = 0.0
                module.weight[neuron, reads] = 2.0
            mlp.down_proj.weight[:, neuron] = 0.0
            mlp.down_proj.weight[REFUSAL, neuron] = 0.3
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model, a plain one, and corpora to detect and to verify on."""
    folder = tmp_path_factory.mktemp("verify")
    write_planted(folder / "planted")
    write_pico(folder / "plain", seed=3)
    for split, verbs in (("detect", ("Buy", "Find", "Draw")), ("eval", ("Sell",))):
        texts = [f"{verb} {subject}" for verb in verbs for subject in SUBJECTS]
        for name, end in (("harmful", "!!!"), ("harmless", "..."), ("lookalike", "??")):
            lines = [f"{text}{end}\n" for text in texts]
            (folder / f"{name}-{split}.txt").write_text("".join(lines))
    (folder / "prose.txt").write_text("The rain fell on the hills.\nA bus came late again.\n" * 4)
    return folder


def detect(place: Path, model: str, output: str, *words: str) -> Done:
    """`snt detect` on the corpora of `place`."""
    corpora = ("--corpus", "harmful-detect.txt", "--against", "harmless-detect.txt")
    return snt(
        *("detect", f"./{model}", *corpora, "--select", "budget=2%", "-o", output, *words),
        *("--dtype", "float32", "--offline"),
        at=place,
    )


HELD_OUT = (
    *("--verify-corpus", "non_refusal=harmful-eval.txt"),
    *("--verify-corpus", "harmless_refusal=harmless-eval.txt"),
    *("--verify-corpus", "over_refusal=lookalike-eval.txt"),
    *("--verify-corpus", "perplexity=prose.txt"),
)


@pytest.fixture(scope="module")
def report(place: Path) -> dict[str, Any]:
    """The report of a verified detection on the planted model."""
    done = detect(place, "planted", "p.safetensors", "--verify", *HELD_OUT, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_planted_neurons_are_found_and_the_verdict_is_yes(
    place: Path, report: dict[str, Any]
) -> None:
    mask = load_mask(place / "p.safetensors")
    assert set(PLANTED) <= set(mask.neurons[1, "ffn"].tolist())
    found = report["verify"]
    assert found["specific"] is True and found["verdict"].startswith("specific effect")
    assert list(found["arms"]) and set(found["arms"]) == set(ARMS)
    assert found["rank_among_draws"] == {
        "position": 1,
        "of": 6,
        "p": pytest.approx(1 / 6),
        "smallest_p": pytest.approx(1 / 6),
    }
    changes = {
        name: arm["refusal_log_odds"]["harmful"]["change"]["value"]
        for name, arm in found["arms"].items()
    }
    assert changes["none"] == 0.0
    assert changes["mask"] < -1.0 and changes["mask"] == min(changes.values())
    for name, arm in found["arms"].items():
        for metric in ("refusal", "over_refusal", "harmless_refusal", "perplexity"):
            low, high = arm[metric]["interval"]
            assert low <= arm[metric]["value"] <= high, (name, metric)
        assert arm["neurons"] == (0 if name == "none" else len(mask))
    assert found["openings"]["of_refusals"] == 0 and "log-odds alone" in found["verdict"]


def test_report_and_replies_lie_beside_the_mask(place: Path, report: dict[str, Any]) -> None:
    assert json.loads((place / "p.verify.json").read_text()) == report["verify"]
    rows = [json.loads(line) for line in (place / "p.verify.jsonl").open()]
    assert len(rows) == len(ARMS) * 3 * 8 and {row["arm"] for row in rows} == set(ARMS)
    odds = [
        r["refusal_log_odds"] for r in rows if r["arm"] == "mask" and r["suite"] == "non_refusal"
    ]
    held = report["verify"]["arms"]["mask"]["refusal_log_odds"]["harmful"]
    assert sum(odds) / len(odds) == pytest.approx(held["value"])
    removed = {row["arm"]: row["settings"]["deactivated"] for row in rows}
    assert removed["none"] is None and len(set(removed.values())) == len(ARMS)


def test_halves_merge_to_what_detection_alone_gives(place: Path, report: dict[str, Any]) -> None:
    stability = report["verify"]["stability"]
    assert sum(stability["prompts"]) == 24 and stability["threshold"] == "budget=2%"
    assert stability["iou"] > stability["iou_by_chance"]
    assert "budget=2%" in [point["threshold"] for point in report["verify"]["curve"]]
    assert detect(place, "planted", "q.safetensors").returncode == 0
    for end in ("safetensors", "scores.safetensors", "against.scores.safetensors"):
        assert (place / f"p.{end}").read_bytes() == (place / f"q.{end}").read_bytes()


def test_a_model_without_safety_neurons_is_exit_3_with_the_mask_on_disk(place: Path) -> None:
    done = detect(place, "plain", "n.safetensors", "--verify", *HELD_OUT)
    assert done.returncode == 3 and "no specific effect" in done.stderr
    assert "Traceback" not in done.stderr
    for words in ("random-5", "foundation", "Stability", "verdict: no specific effect"):
        assert words in done.stdout
    assert load_mask(place / "n.safetensors") and (place / "n.verify.json").is_file()


def test_a_random_mask_of_the_planted_model_is_not_specific(
    place: Path, report: dict[str, Any]
) -> None:
    import snt as package

    mask = load_mask(place / "p.safetensors")
    planted = NeuronMask(mask.anatomy, {(1, "ffn"): torch.tensor(PLANTED, dtype=torch.int32)})
    drawn = next(d for d in (random_like(mask, n) for n in range(99)) if d.overlap(planted) == 0)
    save_mask(drawn, place / "r.safetensors")
    for end in ("scores.safetensors", "against.scores.safetensors"):
        (place / f"r.{end}").write_bytes((place / f"p.{end}").read_bytes())
    given = dict(item.split("=") for item in HELD_OUT[1::2])
    settings = package.VerifySettings(
        new_tokens=2, corpora={metric: str(place / name) for metric, name in given.items()}
    )
    found = package.verify(
        place / "r.safetensors",
        str(place / "planted"),
        settings=settings,
        dtype="float32",
        offline=True,
    )
    assert not found.verdict.specific and found.stability is None
    assert found.as_json()["foundation_corpus"]["name"] == "harmless-detect.txt"
    with pytest.raises(NegativeResult, match="no specific effect"):
        found.check()


def test_without_a_second_corpus_the_foundation_is_the_built_in_one(place: Path) -> None:
    words = ("--corpus", "harmful-detect.txt", "--against", "none", "--verify", *HELD_OUT)
    done = snt(
        *("detect", "./planted", *words, "--select", "topk=ffn:4,attn:1", "--offline", "--json"),
        *("--kinds", "ffn,v", "-o", "t.safetensors"),
        at=place,
    )
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    assert report["verify"]["foundation_corpus"]["name"] == "harmless/detect"
    assert len(report["scores"]) == 1
    assert not list(place.glob("*.unfinished"))


def test_requests_that_cannot_give_a_verdict(place: Path) -> None:
    cases = [
        ("--draws", "4"),
        ("--verify-limit", "5"),
        ("--shard", "1/2"),
        ("--languages", "en,it"),
        ("--verify-corpus", "nonsense=prose.txt"),
        ("--verify-corpus", "prose.txt"),
        ("--verify-corpus", "non_refusal=harmful-detect.txt"),
    ]
    for words in cases:
        done = detect(place, "planted", "x.safetensors", "--verify", *words)
        assert done.returncode == 2, (words, done.stderr)
        assert not done.stdout.strip() and not list(place.glob("x.*"))
    (place / "few.txt").write_text("One!\nTwo!\n")
    done = detect(place, "planted", "x.safetensors", "--verify", "--corpus", "few.txt")
    assert done.returncode == 2 and "halves" in done.stderr


def test_draws_have_seeds_of_their_own() -> None:
    from snt.verification_arms import draw_seed

    seeds = {draw_seed(seed, number) for seed in range(5) for number in range(1, 6)}
    assert len(seeds) == 25 and all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(RequestError, match="negative"):
        draw_seed(-1, 1)
