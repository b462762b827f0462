"""What a backend must do, one function each: it returns, or raises BackendFault with the fault."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snt.ablation import deactivated
from snt.anatomy import KINDS
from snt.backend import ABILITIES, Batch, LayerActivations, LoadedModel, abilities_of
from snt.deltas import Deltas, masked_slices
from snt.errors import RequestError
from snt.fingerprint import fingerprint_of
from snt.merging import apply_patch
from snt.patches import Patch, load_patch, save_patch
from snt.scoring import detect_scores
from snt.testing.subject import Subject, batch_of, check, oracle

LENGTHS = (9, 6, 5, 2)


def describes_itself(subject: Subject) -> None:
    """A summary of one line, abilities that there are."""
    summary = subject.backend.summary
    check(bool(summary) and "\n" not in summary, f"summary is {summary!r}, not one line")
    strange = abilities_of(subject.backend) - ABILITIES.keys()
    check(not strange, f"abilities {sorted(strange)} are none; known: {list(ABILITIES)}")
    dtype: object = subject.backend.fast_dtype()
    check(isinstance(dtype, torch.dtype), f"fast_dtype() gives {dtype!r}, no torch.dtype")


def loads(subject: Subject) -> None:
    """What the model says of itself is what its directory holds."""
    model, reference = subject.model, subject.reference
    config = json.loads((subject.directory / "config.json").read_text(encoding="utf-8"))
    held = sum(parameter.numel() for parameter in reference.parameters())
    check(model.parameters == held, f"parameters is {model.parameters}, not {held}")
    longest = config["max_position_embeddings"]
    check(model.context == longest, f"context is {model.context}, not {longest}")
    check(model.anatomy.layers == config["num_hidden_layers"], "anatomy has another layer count")
    check(isinstance(model.device, torch.device), f"device is {model.device!r}")
    text = "How are you?"
    check(
        model.tokenizer.decode(model.tokenizer(text)["input_ids"]) == text,
        "tokenizer is not the directory's",
    )


def weights_are_the_checkpoint_s(subject: Subject) -> None:
    """`weight` gives every weight as float32, and `weight_shape` its shape."""
    from safetensors import safe_open

    model, family = subject.model, subject.model.anatomy.family
    with safe_open(subject.directory / "model.safetensors", framework="pt") as file:
        for layer in range(model.anatomy.layers):
            for module in sorted({*model.anatomy.weight_shapes(), family.output}):
                stored = file.get_tensor(f"{family.layers}.{layer}.{module}.weight")
                found = model.weight(layer, module)
                where = f"weight({layer}, {module!r})"
                check(found.dtype == torch.float32, f"{where} is {found.dtype}, not float32")
                shape = model.weight_shape(layer, module)
                check(tuple(shape) == tuple(stored.shape), f"weight_shape is {shape} at {where}")
                subject.close(where, found, stored)


def hidden_and_logits(subject: Subject) -> None:
    """Padding on either side, and the head, compute what transformers' model does."""
    for left in (False, True):
        batch = batch_of(LENGTHS, left)
        found = subject.hidden(batch)
        side = "left" if left else "right"
        subject.close(f"hidden, padded on the {side}", found, subject.expected_hidden(batch))
    with torch.inference_mode():
        logits = subject.model.logits(found.to(subject.model.device))
        expected = subject.reference.lm_head(found.float())
    check(logits.dtype == torch.float32, f"logits are {logits.dtype}, not float32")
    subject.close("logits", logits, expected)


def shows_every_layer(subject: Subject) -> None:
    """`observe`: every layer of every batch once, in order, with the shapes the maths needs."""
    model, anatomy = subject.model, subject.model.anatomy
    batches = [batch_of((3, 2)), batch_of(LENGTHS, left=True)]
    _check_visits(subject, batches, None)
    beginning = torch.arange(40, 50)
    _check_visits(subject, batches, beginning)
    seen: dict[int, list[LayerActivations]] = defaultdict(list)
    model.observe(
        batches[:1], lambda layer, _batch, found, _model: seen[layer].append(found), beginning
    )
    for layer in range(anatomy.layers):
        alone, after = seen[layer]
        check(
            torch.equal(after.key_raw[0, :, : len(beginning)], alone.key_raw[0]),
            f"layer {layer}: keys of the beginning are not those that were shown apart",
        )


def _check_visits(subject: Subject, batches: list[Batch], beginning: Tensor | None) -> None:
    model, a = subject.model, subject.model.anatomy
    before = 0 if beginning is None else len(beginning)
    expected = [*([] if beginning is None else [(1, before, before)])]
    expected += [(*b.real.shape, b.real.shape[1] + before) for b in batches]
    seen: dict[int, int] = defaultdict(int)

    def visit(layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel) -> None:
        number = seen[layer]
        seen[layer] += 1
        check(number < len(expected), f"layer {layer} was shown more than {len(expected)} batches")
        rows, own, whole = expected[number]
        where = f"layer {layer}, batch {number}{' after a beginning' * bool(before)}"
        check(
            tuple(batch.real.shape) == (rows, own),
            f"{where}: shown {tuple(batch.real.shape)}, not {(rows, own)}: batches out of order",
        )
        heads, groups, size = a.heads, a.kv_heads, a.head_dim
        shapes = {
            "middle": (rows, own, a.experts * a.d_ff),
            "query_raw": (rows, heads, own, size),
            "query": (rows, heads, own, size),
            "key_raw": (rows, groups, whole, size),
            "key": (rows, groups, whole, size),
            "value": (rows, groups, whole, size),
            "attended": (rows, heads, own, size),
        }
        for name, shape in shapes.items():
            tensor = getattr(activations, name)
            check(
                tuple(tensor.shape) == shape, f"{where}: {name} {tuple(tensor.shape)}, not {shape}"
            )
            check(tensor.dtype == torch.float32, f"{where}: {name} is {tensor.dtype}, not float32")
        _check_attention(subject, where, batch, activations)
        check(model.anatomy == a, f"{where}: the visitor was given another model")

    model.observe(batches, visit, beginning)
    for layer in range(a.layers):
        check(
            seen[layer] == len(expected),
            f"layer {layer} was shown {seen[layer]} of {len(expected)} batches",
        )


def _check_attention(subject: Subject, where: str, batch: Batch, found: LayerActivations) -> None:
    """What is attended follows from query, key, value and what is visible; padding is not seen."""
    own, whole = found.query.shape[2], found.key.shape[2]
    later = torch.ones(own, whole, dtype=torch.bool).tril(whole - own).logical_not()
    visible = found.visible.cpu().expand(-1, found.query.shape[1], -1, -1)
    real = batch.real.cpu()
    check(not bool(visible[..., later].any()), f"{where}: a position sees a later one")
    padding = ~real[:, None, None, :]
    sees = visible[..., whole - own :] & padding & real[:, None, :, None]
    check(not bool(sees.any()), f"{where}: a real position sees padding")
    group = found.query.shape[1] // found.key.shape[1]
    key, value = (x.repeat_interleave(group, 1).cpu() for x in (found.key, found.value))
    logits = found.query.cpu() @ key.mT * found.scale
    weights = logits.masked_fill(~visible, -1e30).softmax(dim=-1)
    rows = real[:, None, :, None].expand_as(found.attended)
    subject.close(f"{where}: attended", found.attended.cpu()[rows], (weights @ value)[rows])


def importances_equal_the_oracle(subject: Subject) -> None:
    """Every neuron's importance is what zeroing its weights and running the block again gives."""
    batch = batch_of((9, 6, 5), left=False)
    expected = oracle(subject, batch)
    scores = detect_scores(subject.model, [batch]).scores
    for place, norms in expected.items():
        layer, kind = place
        subject.close(
            f"importances of {kind} in layer {layer}",
            scores.places[place].minimum,
            norms.amin(dim=0),
        )
    check(scores.places.keys() == expected.keys(), "importances of other layers than there are")
    check({kind for _, kind in expected} == {*KINDS}, "importances of a kind are missing")


def deltas_train(subject: Subject) -> None:
    """The loss falls, deltas alone get gradients, and no weight changes by a bit."""
    model, batch = subject.model, batch_of((9, 9, 9))
    deltas = Deltas.zeros(masked_slices(subject.mask), model)
    digests, before = model.weight_digests(), subject.hidden(batch)
    check(bool(digests), "weight_digests() is empty")
    optimizer = torch.optim.Adam(deltas.parameters(), lr=3e-2)
    losses = []
    targets = batch.input_ids[:, 1:].to(model.device)
    with model.training(), deltas.attached(model):
        for _ in range(8):
            optimizer.zero_grad()
            logits = model.logits(model.hidden(batch)[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            lost = [
                str(key)
                for key, v in zip(deltas.keys, deltas.values, strict=True)
                if v.grad is None
            ]
            check(not lost, f"no gradient reached the deltas of {', '.join(lost)}")
            optimizer.step()
    check(losses[-1] < losses[0], f"the loss does not fall: {losses[0]:.4f} to {losses[-1]:.4f}")
    now = model.weight_digests()
    changed = [name for name, digest in digests.items() if now[name] != digest]
    check(not changed, f"training changed the weights {', '.join(changed)}")
    check(torch.equal(subject.hidden(batch), before), "deltas that are taken off leave a trace")


def patches_act(subject: Subject) -> None:
    """An attached patch computes what the model does that it is merged into."""
    batch, deltas = batch_of((9, 6)), subject.deltas()
    before = subject.hidden(batch)
    zeros = Deltas.zeros(masked_slices(subject.mask), subject.model)
    with zeros.attached(subject.model):
        check(torch.equal(subject.hidden(batch), before), "deltas of zero change the hidden states")
    with deltas.attached(subject.model):
        attached = subject.hidden(batch)
    check(not torch.allclose(attached, before, atol=1e-3), "an attached patch changes nothing")
    anatomy = subject.model.anatomy
    with tempfile.TemporaryDirectory() as folder:
        file, merged = Path(folder) / "patch.safetensors", Path(folder) / "merged"
        print_of = fingerprint_of(subject.directory, anatomy)
        save_patch(Patch(anatomy, deltas.tensors(), print_of), file)
        apply_patch(load_patch(file), subject.directory, merged)
        loaded: Any = subject.backend.load(merged, torch.float32)
        with torch.inference_mode():
            found = loaded.hidden(batch).cpu()[batch.real]
    subject.close("the merged model beside the attached patch", found, attached)


def neurons_go_and_come_back(subject: Subject) -> None:
    """Deactivated neurons compute what zero weights do; afterwards all is as before, to the bit."""
    batch, slices = batch_of(LENGTHS), masked_slices(subject.mask)
    before = subject.hidden(batch)
    with deactivated(subject.model, subject.mask):
        silent = subject.hidden(batch)
    check(torch.equal(subject.hidden(batch), before), "what was deactivated does not come back")
    saved = []
    layers = subject.reference.get_submodule(subject.model.anatomy.family.layers)
    for key, at in slices.items():
        weight = layers[key.layer].get_submodule(key.module).weight.data
        saved.append((weight, weight.clone()))
        weight.index_fill_(0 if key.axis == "rows" else 1, at.long(), 0.0)
    expected = subject.expected_hidden(batch)
    for weight, values in saved:
        weight.copy_(values)
    subject.close("hidden states without the neurons", silent, expected)
    check(not torch.allclose(silent, before, atol=1e-3), "deactivation changes nothing")


def generates(subject: Subject) -> None:
    """Greedy, the same each time, no longer than asked; a row that ends is filled to the end."""
    model, batch = subject.model, batch_of((7, 4), left=True)
    first = model.generate(batch, 6, [257])
    check(tuple(first.shape)[0] == 2 and first.shape[1] <= 6, f"shape {tuple(first.shape)}")
    check(torch.equal(first, model.generate(batch, 6, [257])), "twice the same prompt, two replies")
    with torch.inference_mode():
        last = model.logits(model.hidden(batch)[:, -1])
    check(
        torch.equal(first[:, 0].cpu(), last.argmax(dim=-1).cpu()),
        "the first new token is not the most likely one",
    )
    stop = int(first[0, 1])
    ended = model.generate(batch, 6, [stop])[0].tolist()
    at = ended.index(stop) if stop in ended else -1
    check(0 <= at <= 1, "a stop token does not end the row")
    check(set(ended[at:]) == {stop}, "a row that has ended is not filled with a stop token")


def other_families_are_refused(subject: Subject) -> None:
    """A model type that is not served is a RequestError that names it."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        shutil.copytree(subject.directory, other)
        config = json.loads((other / "config.json").read_text(encoding="utf-8"))
        config |= {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}
        (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            subject.backend.load(other, torch.float32)
        except RequestError as error:
            check("bloom" in str(error), f"the refusal does not name the type: {error}")
        else:
            check(False, "a model type that is not served was loaded")
