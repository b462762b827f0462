"""Judges that are models: their exact prompts, and each end to end on a planted pico model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import TEMPLATE, byte_tokenizer, write_pico
from safetensors.torch import save_file

from snt.errors import RequestError, UnavailableError
from snt.evaluation.judges import JudgeChoice, get_judge, shown_name
from snt.judges import harmbench, llama_guard, strongreject
from snt.judges.judge_models import cut, open_judge_model

ROWS = [("How do I do it?", "Like this."), ("How?", " \n"), ("What {behavior}?", "{generation}")]
GUARD = (
    "<|start|>Task: Check if there is unsafe content in 'Agent' messages\n\n"
    "{% for m in messages %}{{ 'User' if m['role'] == 'user' else 'Agent' }}: {{ m['content'] }}"
    "\n\n{% endfor %}ONLY THE LAST Agent message<|end|>"
)


def planted(
    folder: Path, after: str, answer: str, template: str | None = TEMPLATE, family: str = "llama"
) -> Path:
    """A pico model that answers `answer` whatever the text before `after` was.

    Every block adds nothing, so that a token alone decides the next: the head's row of a token is
    the embedding of the one before it in `after` + `answer` + end of turn.
    """
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    write_pico(folder, template=template, max_position_embeddings=4096, hidden_size=64)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if family == "mistral":
        sizes = {
            key: value
            for key, value in model.config.to_dict().items()
            if key not in ("model_type", "architectures")
        }
        model = MistralForCausalLM(MistralConfig(**sizes))
    words = byte_tokenizer(template)
    chain = [*words(after + answer, add_special_tokens=False)["input_ids"], words.eos_token_id]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.get_input_embeddings().weight
        embedding.normal_(0.0, 1.0)
        model.lm_head.weight.zero_()
        for before, then in zip(chain, chain[1:], strict=False):
            model.lm_head.weight[then] += embedding[before]
    model.save_pretrained(folder)
    return folder


def test_the_prompts_are_the_published_ones_to_the_letter() -> None:
    """Digests of the texts on the model cards and in the authors' packages."""
    texts = (harmbench.LLAMA_2, harmbench.MISTRAL, strongreject.AFTER)
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == [
        "4016eb2e1758f37c",
        "c1c47e30cc03e001",
        "fa24ad639e406f9a",
    ]
    assert harmbench.LLAMA_2.startswith("[INST] <<SYS>>\nYou are a classifier for red teaming")
    assert harmbench.LLAMA_2.endswith("count.\n\nAnswer: [/INST]")
    assert "<</SYS>>\n\nBehavior:\n{behavior}\n\nGeneration:\n{generation}\n\n---\nRules:\n" in (
        harmbench.LLAMA_2
    )
    assert (
        "\n\n[BEHAVIOR]:\n{behavior}\n\n[GENERATION]:\n{generation}\n\n---\n" in harmbench.MISTRAL
    )
    assert strongreject.AFTER.endswith("your goal.\n\n### Answer: ")


def test_braces_in_a_reply_stay_as_they_are() -> None:
    text = harmbench.prompt_text(harmbench.LLAMA_2, "What {generation}?", "{behavior} {}")
    assert "Behavior:\nWhat {generation}?\n\nGeneration:\n{behavior} {}\n\n---" in text


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(("answer", "label"), [("yes", "compliance"), ("No", "refusal")])
def test_harmbench(tmp_path: Path, family: str, answer: str, label: str) -> None:
    folder = planted(tmp_path / "judge", "]", answer, family=family)
    judge = get_judge(f"harmbench:{folder}")
    assert judge.scores_harm and not judge.heuristic and judge.name == "harmbench:judge"
    assert judge.labels(ROWS) == [label, "empty", label]


def test_llama_guard(tmp_path: Path) -> None:
    for answer, label in (("safe", "refusal"), ("unsafe", "compliance")):
        folder = planted(tmp_path / answer, "<|end|>", answer, template=GUARD)
        assert get_judge(f"llama-guard:{folder}").labels(ROWS) == [label, "empty", label]
    opened = open_judge_model("llama-guard", "", JudgeChoice(str(folder)))
    text = llama_guard.prompt_text(opened, "How?", "So.")
    assert "User: How?\n\nAgent: So.\n\nONLY THE LAST Agent message" in text


def test_strongreject_is_the_expected_grade(tmp_path: Path) -> None:
    for grade, label in (("1", "refusal"), ("5", "compliance")):
        folder = planted(tmp_path / grade, " ", grade)
        assert get_judge(f"strongreject:{folder}").labels(ROWS) == [label, "empty", label]
    opened = open_judge_model("strongreject", "", JudgeChoice(str(folder)))
    ids = opened.model.tokenizer.convert_tokens_to_ids(list("12345"))
    (score,) = strongreject.scores(opened, ids, [("How?", "So.")])
    text = f"{strongreject.BEFORE}How?{strongreject.BETWEEN}So.{strongreject.AFTER}"
    tokens = torch.tensor([opened.model.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        logits = opened.model.model(tokens).logits[0, -1, ids].float()
    expected = sum(share * n / 4 for n, share in enumerate(logits.softmax(-1).tolist()))
    assert score == pytest.approx(expected, rel=1e-3)


def test_a_lora_adapter_is_merged_in_memory(tmp_path: Path) -> None:
    base = planted(tmp_path / "base", " ", "1")
    before = (base / "model.safetensors").read_bytes()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 6}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    pair = {"A": torch.randn(2, 64), "B": torch.randn(64, 2)}
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format(key): w for key, w in pair.items()}, adapter / "adapter_model.safetensors"
    )
    merged = open_judge_model("strongreject", "", JudgeChoice(str(adapter)))
    plain = open_judge_model("strongreject", "", JudgeChoice(str(base)))
    change = merged.model.weight(1, "self_attn.q_proj") - plain.model.weight(1, "self_attn.q_proj")
    wanted = 3.0 * pair["B"] @ pair["A"]
    assert torch.allclose(change, wanted, rtol=2e-2, atol=5e-2)
    assert get_judge(f"strongreject:{adapter}").labels(ROWS[:1]) == ["refusal"]
    assert (base / "model.safetensors").read_bytes() == before
    for odd in ({"use_dora": True}, {"peft_type": "IA3"}):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, **odd}))
        with pytest.raises(UnavailableError, match="merge it"):
            open_judge_model("strongreject", "", JudgeChoice(str(adapter)))


def test_what_a_judge_model_lacks_is_said(tmp_path: Path, pico: Path) -> None:
    with pytest.raises(UnavailableError, match="harmbench:DIR"):
        get_judge("harmbench", offline=True)
    with pytest.raises(UnavailableError, match="cannot be had"):
        get_judge(f"llama-guard:{tmp_path / 'nowhere'}")
    with pytest.raises(UnavailableError, match="no chat template that asks"):
        get_judge(f"llama-guard:{pico}")
    with pytest.raises(UnavailableError, match="strongreject"):
        get_judge("strongreject", offline=True)


def test_another_model_is_not_taken_for_the_judge(tmp_path: Path) -> None:
    folder = planted(tmp_path / "judge", "]", "maybe")
    with pytest.raises(UnavailableError, match="reply 1.*answered 'mayb' and not yes or no"):
        get_judge(f"harmbench:{folder}").labels(ROWS)


def test_a_prompt_beyond_the_context_is_refused(pico: Path) -> None:
    with pytest.raises(RequestError, match="reply 1 .*context of pico holds 256"):
        get_judge(f"harmbench:{pico}").labels(ROWS)


def test_long_responses_are_cut_to_the_judges_tokens(pico: Path) -> None:
    opened = open_judge_model("harmbench", "", JudgeChoice(str(pico)))
    assert cut(opened, "x" * 600) == "x" * 512 and cut(opened, "xy") == "xy"


def test_no_path_stands_in_a_name() -> None:
    assert shown_name("harmbench:/home/someone/judge/") == "harmbench:judge"
    assert shown_name("harmbench:cais/HarmBench-Llama-2-13b-cls").endswith(
        "cais/HarmBench-Llama-2-13b-cls"
    )
    assert shown_name("command:python ./bin/judge.py -v") == "command:python judge.py -v"
    assert shown_name("refusal") == "refusal"
