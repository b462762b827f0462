"""int8 and int4 against full on the embedded model: masks, memory, time, and patches carried over.

    python -m benchmarks.quantised [--prompts 16] [--pairs 16] [--epochs 4] [--only masks,patches]

One JSON document goes to stdout, progress to stderr; the exit status is 1 where the linear layers
of int8 take over 0.55 of bfloat16's. Models are held in turn, so that memory is one model's. Times
are the processor's, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from snt_backends.quantised_model import (
    ExactLinear8bit,
    Linear8bitLt,
    dequantised,
    quantised_modules,
    stored,
)

from benchmarks.embedded import MODEL
from snt import corpora
from snt.backend import Batch
from snt.corpora import Corpus
from snt.deltas import Deltas
from snt.detection import detect
from snt.generation import left_padded_batches
from snt.masks import NeuronMask, load_mask
from snt.memory import release
from snt.objective import Kept, Pair, refusal_loss, retain_loss, right_padded, step_of
from snt.opening import ModelChoice, OpenModel, open_model
from snt.overlap import overlap_of
from snt.patches import load_patch
from snt.retaining import kept_prompts
from snt.training import Schedule
from snt.tuning import tune

BACKENDS = ("full", "int8", "int4")
BAR = 0.55
SIDES = ("harmful/detect", "harmless/detect")


def masks(prompts: int, into: Path) -> dict[str, Any]:
    """Detection at a budget of 1% by every backend, and by full on other prompts of the corpora."""
    found: dict[str, Any] = {}
    held: dict[str, NeuronMask] = {}
    logits: dict[str, torch.Tensor] = {}
    for backend in BACKENDS:
        opened = _opened(backend, exact=True)
        row = found[backend] = _weights(opened)
        batch = _batch(opened, sample("harmful/eval", 8))
        logits[backend], row["forward_ms"] = _logits(opened, batch)
        row["logits"] = _agreement(logits[backend], logits["full"])
        row["generation_ms"] = _generation(backend)
        if backend == "int8":
            row["rounded_inputs"] = _rounded_inputs(opened, batch, logits)
        for name, part in {backend: 0, **({"other": 1} if backend == "full" else {})}.items():
            _say(f"{name}: detection")
            started = time.process_time()
            result = detect(
                corpus=sample(SIDES[0], prompts, part),
                against=sample(SIDES[1], prompts, part),
                select_by="budget=1%",
                output=into / f"{name}.safetensors",
                opened=opened,
            )
            held[name] = result.mask
            spent = {"detection_seconds": time.process_time() - started}
            found.setdefault(name, {}).update(spent, neurons=len(result.mask))
            overlap = overlap_of(name, result.mask, "full", held["full"])
            found[name]["overlap"] = overlap.as_json()
        del opened
        release()
    return found


def patches(pairs: int, epochs: float, into: Path) -> dict[str, Any]:
    """A patch trained beside each backend's weights, measured beside its own and beside full's."""
    every = corpora.load_pairs("refusals/tune").pairs
    step = max(1, len(every) // (2 * pairs))
    chosen, held_out = (
        every[: 2 * pairs * step : 2 * step],
        every[step : 2 * pairs * step : 2 * step],
    )
    data, retain = into / "pairs.jsonl", into / "retain.txt"
    data.write_text(
        "".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in chosen), "utf-8"
    )
    retain.write_text("\n".join(sample("harmless/tune", pairs).texts), "utf-8")
    seconds: dict[str, float] = {}
    for backend in BACKENDS:
        _say(f"{backend}: tuning")
        started = time.process_time()
        tune(
            mask=into / f"{backend}.safetensors",
            data=str(data),
            retain=[str(retain)],
            output=into / f"patch-{backend}",
            schedule=Schedule(epochs=epochs, retain_batch=8),
            positions=1,
            backend=backend,
        )
        seconds[backend] = time.process_time() - started
        release()
    rows: list[dict[str, Any]] = []
    kept: list[Kept] = []
    for backend in BACKENDS:
        opened = _opened(backend)
        if backend == "full":
            texts = sample("harmless/eval", pairs).texts
            kept = kept_prompts(opened.model, opened.chat, texts)
        for source in (None, *(BACKENDS if backend == "full" else (backend,))):
            _say(f"{backend}: patch of {source}")
            losses = _losses(opened, held_out, kept, source and into / f"patch-{source}")
            rows.append({"measured_on": backend, "patch_of": source, **losses})
        del opened
        release()
    return {"pairs": len(chosen), "epochs": epochs, "tune_seconds": seconds, "rows": rows}


def sample(name: str, size: int, part: int = 0) -> Corpus:
    """An even sample of a corpus; `part` 1 takes other texts than 0."""
    whole = corpora.load(name)
    step = max(2, len(whole.texts) // size)
    at = slice(part * (step // 2), None, step)
    rows, texts = whole.rows[at][:size], whole.texts[at][:size]
    return Corpus(whole.name, texts, rows, whole.language)


def _opened(backend: str, exact: bool = False) -> OpenModel:
    started = time.perf_counter()
    opened = open_model(ModelChoice(MODEL, backend), exact=exact)
    _say(f"{backend}: loaded in {time.perf_counter() - started:.1f} s")
    return opened


def _weights(opened: OpenModel) -> dict[str, Any]:
    """Bytes of the linear layers of the decoder, as a share of what bfloat16 takes."""
    model: Any = opened.model
    modules = quantised_modules(model.model)
    if modules:
        held = sum(part.nbytes for one in modules.values() for part in stored(one).values())
        entries = sum(one.in_features * one.out_features for one in modules.values())
    else:
        linear = [one for one in model.model.model.modules() if isinstance(one, torch.nn.Linear)]
        held = sum(one.weight.nbytes for one in linear)
        entries = sum(one.weight.numel() for one in linear)
    return {"linear_bytes": held, "of_bfloat16": held / (2 * entries)}


def _batch(opened: OpenModel, corpus: Corpus) -> Batch:
    ids = [opened.chat.prompt_ids(text) for text in corpus.texts]
    return right_padded(ids, opened.chat.pad_id)


def _logits(opened: OpenModel, batch: Batch) -> tuple[torch.Tensor, float]:
    """(tokens, V) logits at real positions, and the milliseconds of the quickest forward."""
    taken = []
    with torch.inference_mode():
        for _ in range(3):
            started = time.process_time()
            hidden = opened.model.hidden(batch)
            taken.append(1000 * (time.process_time() - started))
        return opened.model.logits(hidden[batch.real]), min(taken)


def _generation(backend: str) -> float:
    """Milliseconds of a token for 8 prompts at once, in the precision that commands generate in."""
    opened = _opened(backend)
    ids = [opened.chat.prompt_ids(text) for text in sample("harmful/eval", 8).texts]
    ((_, batch),) = left_padded_batches(ids, opened.chat.pad_id, len(ids))
    taken = []
    for tokens in (1, 17):
        started = time.process_time()
        opened.model.generate(batch, tokens, [])
        taken.append(1000 * (time.process_time() - started))
    return (taken[1] - taken[0]) / 16


def _agreement(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    centred = wanted - wanted.mean(dim=-1, keepdim=True)
    return {
        "relative": float((found - wanted).norm() / centred.norm()),
        "top_1": float((found.argmax(dim=-1) == wanted.argmax(dim=-1)).float().mean()),
        "largest": float((found - wanted).abs().max()),
    }


def _rounded_inputs(
    opened: OpenModel, batch: Batch, logits: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """What LLM.int8's own product, which rounds the inputs, would give instead."""
    model: Any = opened.model
    modules = list(quantised_modules(model.model).values())
    try:
        for module in modules:
            module.__class__ = Linear8bitLt
        together, taken = _logits(opened, batch)
        rows = zip(batch.input_ids, batch.real, strict=True)
        alone = [_logits(opened, Batch(i[None, : r.sum()], r[None, : r.sum()]))[0] for i, r in rows]
    finally:
        for module in modules:
            module.__class__ = ExactLinear8bit
    exact = [
        _logits(opened, Batch(i[None, : r.sum()], r[None, : r.sum()]))[0]
        for i, r in zip(batch.input_ids, batch.real, strict=True)
    ]
    return {
        "logits": _agreement(together, logits["full"]),
        "forward_ms": taken,
        "alone_against_batch": _agreement(torch.cat(alone), together),
        "exact_alone_against_batch": _agreement(torch.cat(exact), logits["int8"]),
    }


def _losses(
    opened: OpenModel, pairs: Iterable[tuple[str, str]], kept: Sequence[Kept], patch: Path | None
) -> dict[str, float]:
    """Losses, in nats, of held-out refusals and of held-out answers of full's untouched model."""
    examples = [Pair(*opened.chat.pair_ids(*pair)) for pair in pairs]
    slices = {} if patch is None else load_patch(patch / "patch.safetensors").slices
    model = opened.model
    with torch.inference_mode(), Deltas(slices).attached(model):
        step = step_of(examples, [], opened.chat.pad_id, len(examples), 0)
        at = step.refuse_at
        hidden = model.hidden(step.batch)[at[:, 0], at[:, 1]]
        refuse = refusal_loss(model.logits(hidden), step.targets, step.refuse_weights)
        step = step_of([], kept, opened.chat.pad_id, 0, len(kept))
        at = step.retain_at
        hidden = model.hidden(step.batch)[at[:, 0], at[:, 1]]
        keep = retain_loss(model.logits(hidden), step.top_ids, step.top_log, step.retain_weights)
    return {"refuse": float(refuse), "retain": float(keep)}


def _against_base(into: Path) -> dict[str, float]:
    """By patch, its size beside the error of the weights that it was trained beside."""
    full = _opened("full", exact=True).model
    found = {}
    for backend in BACKENDS[1:]:
        model: Any = _opened(backend, exact=True).model
        patch = load_patch(into / f"patch-{backend}" / "patch.safetensors")
        deltas, errors = 0.0, 0.0
        for key, (indices, delta) in patch.slices.items():
            axis = 0 if key.axis == "rows" else 1
            error = dequantised(model.module(key.layer, key.module)).float()
            error -= full.weight(key.layer, key.module)
            errors += float(error.index_select(axis, indices.long()).square().sum())
            deltas += float(delta.square().sum())
        found[backend] = (deltas / errors) ** 0.5
        release()
    return found


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantised", description=__doc__)
    parser.add_argument("--prompts", type=int, default=16, help="of each corpus")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--only", default="masks,patches")
    parser.add_argument("--into", type=Path, help="keep masks and patches here; patches need masks")
    options = parser.parse_args()
    # One line for every product of float32 inputs, which is what `_rounded_inputs` is about.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        into = options.into or Path(scratch)
        into.mkdir(exist_ok=True, parents=True)
        if "masks" in options.only.split(","):
            report["masks"] = masks(options.prompts, into)
        if "patches" in options.only.split(","):
            load_mask(into / "int8.safetensors")
            report["patches"] = patches(options.pairs, options.epochs, into)
            report["patches"]["delta_over_error"] = _against_base(into)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    met = report.get("masks", {}).get("int8", {}).get("of_bfloat16", 0.0) <= BAR
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
