"""A SmolLM2 GGUF file turned into an ordinary safetensors model directory.

transformers reads GGUF; what stands here makes the result one that it can save, and puts right
what it does not read: the pre-tokenizer, the epsilon, the names.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snt.atomic import write_json
from snt.errors import RunFailure, UnavailableError


def convert(gguf: Path, out: Path, *, hub_id: str) -> None:
    """Write `gguf` as a float32 transformers directory into the existing folder `out`.

    float32, because the file's 4-bit blocks dequantise to values that bfloat16 would round.
    Raises UnavailableError without the gguf package, RunFailure when transformers does not know
    a tensor or the disk is full.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UnavailableError("reading GGUF needs the gguf package; run `pip install gguf`")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    # transformers' own types know neither the pair that output_loading_info returns nor these.
    models: Any = AutoModelForCausalLM
    generation: Any = GenerationConfig
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with quiet_transformers():
        loaded, info = models.from_pretrained(
            gguf.parent, dtype=torch.float32, output_loading_info=True, **source
        )
        # Silenced above: a tensor that this transformers does not map would be left random.
        absent = sorted(set(info["missing_keys"]) - {"lm_head.weight"})
        if absent:
            raise RunFailure(
                f"this transformers does not read {', '.join(absent[:3])} of {gguf.name}; "
                "install the versions of constraints.txt"
            )
        config = _config(loaded.config)
        # save_pretrained refuses a model that came from GGUF, so its tensors move to a fresh one;
        # on the meta device, so that the weights are in memory once.
        with torch.device("meta"):
            model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = generation(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
        try:
            model.save_pretrained(out)
        except SafetensorError as error:
            raise RunFailure(f"could not write the weights to {out}: {error}") from error
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        _restore_digit_splitting(tokenizer)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(out)
    _tidy(out, hub_id)


def _config(loaded: Any) -> Any:
    """The model's config without its GGUF origin, and with the epsilon as it was written.

    GGUF stores 1e-05 as float32, which reads back as 9.999999747378752e-06.
    """
    import numpy

    values = loaded.to_dict()
    values.pop("quantization_config", None)
    values["rms_norm_eps"] = float(str(numpy.float32(values["rms_norm_eps"])))
    return type(loaded).from_dict(values)


def _restore_digit_splitting(tokenizer: Any) -> None:
    """Put back the pre-tokenizer that the GGUF names `smollm` and transformers does not read.

    Digits are split off before the byte-level pattern; without it blank lines before a number
    become other tokens than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _tidy(out: Path, hub_id: str) -> None:
    """Name the model by its Hub id, and drop what only tells of this conversion."""
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    write_json(out / "config.json", {**config, "_name_or_path": hub_id})

    tokenizer = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):
        tokenizer.pop(key, None)
    # The name that transformers 4, which many servers still run, knows too.
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(out / "tokenizer_config.json", tokenizer)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no warnings from transformers inside; both as they were afterwards."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as typed_logging

    logging: Any = typed_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The GGUF reader has a bar of its own that transformers' switch does not reach.
    own_bar = getattr(reader, "tqdm", None)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if own_bar is not None:
        vars(reader)["tqdm"] = functools.partial(own_bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if own_bar is not None:
            vars(reader)["tqdm"] = own_bar
