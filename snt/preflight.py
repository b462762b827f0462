"""What a command is about to ask of a model, and the memory and time that this will take.

Estimates from sizes alone, before anything is loaded. Memory errs high by a tenth; time is that of
the matrix products at the rate measured on this machine, by factors measured on the embedded model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from snt.backend import ModelSize
from snt.errors import RequestError

if TYPE_CHECKING:
    import torch

    from snt.corpora import Corpus
    from snt.machine import Device

# Whole detection, and a step with its backward pass, over a plain forward pass (docs/design.md);
# without the part of queries and keys that grows with the square of a prompt's length.
_DETECTION = {"exact": 1.7, "fast": 1.8, "paper": 1.2, "released-code": 2.0}
_BACKWARD = 3.5
# That part, as operations per coordinate of the queries and pair of positions: prompts of 66 tokens
# of SmolLM2-135M take 3.8 times a plain pass in all.
_PAIR = {"exact": 400.0, "paper": 400.0}
# What is not matrix products, over what is: SmolLM2-135M, one thread, 50 prompts of 66 tokens.
_REST = 1.3
# Characters a token, and tokens that a chat template adds to a prompt.
_CHARACTERS, _TEMPLATE = 4, 30
# Interpreter and libraries are there already; this is for what sums of tensors leave out.
_MARGIN = 1.1
# The scores of one neuron: bins of log-rank, 8 bytes each, and what goes with them.
_SCORES_BYTES = 300


@dataclass(frozen=True)
class Work:
    """What is asked of a backend: its abilities, and how much of each.

    `tokens` go through the decoder once, `trained` forward and backward; `at_once` of the former
    in one batch of at most `rows` rows, `backward_at_once` of the latter. A detection compares
    `pairs` of positions within prompts, the sum of squared lengths. `replies` of `new_tokens`
    each, after prompts of `longest` tokens. `trainable` entries of deltas. `importance` is set for
    a detection, `checkpointing` where the backward pass computes a layer again.
    """

    needs: tuple[str, ...] = ()
    tokens: int = 0
    pairs: int = 0
    trained: int = 0
    backward_at_once: int = 0
    trainable: int = 0
    replies: int = 0
    new_tokens: int = 0
    rows: int = 8
    longest: int = 256
    at_once: int = 4096
    importance: str | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes that work needs, in parts."""

    weights: int
    activations: int = 0
    cache: int = 0
    deltas: int = 0

    @property
    def total(self) -> int:
        """All parts, and a tenth."""
        return int(_MARGIN * (self.weights + self.activations + self.cache + self.deltas))

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "keys and values": self.cache,
            "deltas and their optimizer": self.deltas,
        }
        said = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
        return f"{gigabytes(self.total)} ({said}, and a tenth)"


def detection_work(corpora: Iterable[Corpus], importance: str, verify: bool = False) -> Work:
    """A detection over all `corpora`; verifying it removes neurons and measures."""
    needs = ("detect", "score", "generate", "patch") if verify else ("detect",)
    lengths = [tokens_of(text) for corpus in corpora for text in corpus.texts]
    longest = max(lengths, default=0)
    # A longer prompt than a batch holds goes alone.
    at_once = max(longest, min(4096, 8 * longest))
    return Work(
        needs,
        tokens=sum(lengths),
        pairs=sum(length**2 for length in lengths),
        longest=longest,
        at_once=at_once,
        importance=importance,
    )


def evaluation_work(
    metrics: Iterable[tuple[str, Corpus]],
    new_tokens: int,
    batch_size: int | None,
    changed: bool = False,
) -> Work:
    """Replies to the corpora of all `metrics`, perplexity of its own; `changed`: beside a patch.

    `batch_size` None is what the memory holds, so few rows are counted here.
    """
    needs: list[str] = ["patch"] if changed else []
    replies = tokens = longest = 0
    for metric, corpus in metrics:
        lengths = [tokens_of(text) for text in corpus.texts]
        tokens += sum(lengths)
        longest = max([longest, *lengths])
        if metric != "perplexity":
            replies += len(lengths)
        needs.append("score" if metric == "perplexity" else "generate")
    rows = min(batch_size or 16, max(1, replies))
    return Work(
        tuple(dict.fromkeys(needs)),
        tokens,
        replies=replies,
        new_tokens=new_tokens,
        rows=rows,
        longest=longest,
        at_once=rows * longest,
    )


def tuning_work(
    trainable: int,
    rows: int,
    lengths: Sequence[int],
    measured: Work | None = None,
    checkpointing: bool = False,
    *,
    trained_rows: int,
    answered_rows: int,
) -> Work:
    """`rows` trained in all, of prompts with `lengths` tokens, and what is `measured` around it.

    `trained_rows` go forward and backward at once, and the model answers `answered_rows` before.
    The measurement is made before and after. Plain texts are within what so many rows take.
    """
    base, longest = measured or Work(), max(lengths)
    return replace(
        base,
        needs=tuple(dict.fromkeys(("tune", "patch", *base.needs))),
        tokens=2 * base.tokens,
        replies=2 * base.replies,
        trained=rows * sum(lengths) // len(lengths),
        trainable=trainable,
        at_once=max(answered_rows * longest, base.at_once),
        backward_at_once=trained_rows * longest,
        longest=max(longest, base.longest),
        checkpointing=checkpointing,
    )


def memory_of(size: ModelSize, work: Work, weights: int, item: int) -> Memory:
    """Bytes that `work` needs beside a backend that holds `weights` bytes; `item` an entry."""
    layer = size.in_layers // size.layers
    # Residual stream, projections and the feed-forward block of one layer, some of them twice.
    passing = (
        work.at_once * (8 * size.d_model + 4 * size.d_ff) * max(item, 4 * bool(work.importance))
    )
    if work.importance:
        # One batch's importances of all layers, the scores, and one weight as float32.
        everywhere = size.layers * size.neurons
        passing += everywhere * (4 * work.rows + _SCORES_BYTES) + (layer * 4) // 3
    if work.trained:
        # What the backward pass reads again, of every layer.
        kept = (12 * size.d_model + 4 * size.d_ff) * item
        if work.checkpointing:
            kept = kept // size.layers + size.d_model * item
        passing += work.backward_at_once * size.layers * kept
        # Logits where a loss is read, half the tokens at most; and their gradient.
        passing += work.backward_at_once * size.vocabulary * 4
    if "score" in work.needs:
        passing = max(passing, 128 * size.vocabulary * 4)
    cache = 0
    if work.replies:
        cache = work.rows * (work.longest + work.new_tokens) * size.cache_entries * item
        passing = max(passing, work.rows * size.vocabulary * 4)
    # The delta, its gradient and two moments, all float32.
    return Memory(weights, passing, cache, 16 * work.trainable)


def seconds_of(size: ModelSize, work: Work, device: str, dtype: torch.dtype) -> float:
    """About how long `work` takes, from products of the model's own shapes measured here."""
    from snt.machine import matmul_rate

    factor = _DETECTION.get(work.importance or "", 1.0)
    passes = factor * work.tokens + _BACKWARD * work.trained
    compared = _PAIR.get(work.importance or "", 0.0) * work.pairs * size.layers * size.d_model
    total = 0.0
    if passes:
        rate = matmul_rate(device, dtype, 256, size.d_model, size.d_ff)
        total += (2.0 * size.in_layers * passes + compared) / rate
    if work.replies:
        rate = matmul_rate(device, dtype, work.rows, size.d_model, size.d_ff)
        words = work.replies * work.new_tokens
        total += 2.0 * (size.in_layers + size.vocabulary * size.d_model) * words / rate
    return _REST * total


def tokens_of(text: str) -> int:
    """About how many tokens a prompt has with its template, before there is a tokenizer."""
    return len(text.encode()) // _CHARACTERS + _TEMPLATE


def fits(memory: Memory, device: Device) -> bool:
    """Whether it can be held on a device as it is now."""
    return memory.total <= device.free


def misfit(memory: Memory, device: Device, what: str, remedies: Iterable[str]) -> RequestError:
    """The error for `what` that does not fit on a device, naming the `remedies` that would."""
    offers = list(remedies)
    remedy = (
        f"it fits with {', or '.join(offers)}"
        if offers
        else "no backend here fits it either: take a smaller model or a machine with more memory"
    )
    return RequestError(
        f"{what} needs about {memory}, and {gigabytes(device.free)} are free on {device.name}; "
        f"{remedy}. SNT_PREFLIGHT=off runs it all the same"
    )


def gigabytes(size: int) -> str:
    """`16060522496` -> `16.1 GB`, and less than one in MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def duration(seconds: float) -> str:
    """About so long, in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
