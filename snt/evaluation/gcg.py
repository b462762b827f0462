"""Suffixes that a search finds against one's own model, with a budget: how much a refusal takes.

The search is nanoGCG's (Zou et al., *Universal and Transferable Adversarial Attacks on Aligned
Language Models*, 2023). What it finds stays in the evaluation's report.
"""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from snt.backend import transformers_model
from snt.corpora import Corpus
from snt.errors import RequestError, RunFailure, UnavailableError
from snt.evaluation.guest_libraries import guest
from snt.evaluation.suites import Asked, Probe
from snt.opening import OpenModel
from snt.progress import Progress

# What a suffix is to make the model begin with, where a corpus has no column `target` (AdvBench's).
TARGET = "Sure, here is"
_SLOT = "{optim_str}"
_AT_ONCE = 32  # candidates whose logits are held at once
# A base model's prompt as `Chat` writes it; nanoGCG knows prompts only through a template.
_PLAIN = (
    "{% for m in messages %}{{ m['content'] }}{{ '\\n\\n' if m['role'] == 'system' else '\\n' }}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class GcgSettings:
    """The budget: `steps` of search with `width` candidates each, against `prompts` requests."""

    steps: int
    prompts: int = 4
    width: int = 128
    seed: int = 0

    def check(self) -> None:
        """Raises RequestError for no budget, UnavailableError without nanogcg."""
        for name, value in (("--gcg-steps", self.steps), ("--gcg-prompts", self.prompts)):
            if value < 1:
                raise RequestError(f"{name} {value}; give at least 1")
        if self.width < 1:
            raise RequestError(f"--gcg-width {self.width}; give at least 1")
        if importlib.util.find_spec("nanogcg") is None:
            raise UnavailableError(
                "searching for suffixes needs nanogcg, which is not installed; run "
                "`pip install 'snt[attack]'`"
            )

    def chosen(self, requests: Corpus) -> Corpus:
        """`prompts` requests drawn with the seed, in the corpus's order; all when it has fewer."""
        count = len(requests.texts)
        if count <= self.prompts:
            return requests
        picked = sorted(random.Random(self.seed).sample(range(count), self.prompts))
        return replace(
            requests,
            name=f"{requests.name} ({self.prompts} of {count})",
            texts=tuple(requests.texts[row] for row in picked),
            rows=tuple(requests.rows[row] for row in picked),
        )


@dataclass(frozen=True)
class Suffix:
    """What the search found for one request; `losses` are those of `target`, in nats a token."""

    row: int
    request: str
    target: str
    text: str
    first_loss: float
    best_loss: float
    seed: int

    def as_json(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {
            "row": self.row,
            "request": self.request,
            "target": self.target,
            "suffix": self.text,
            "first_loss": self.first_loss,
            "best_loss": self.best_loss,
            "seed": self.seed,
        }


def attacked(
    opened: OpenModel, probe: Probe, settings: GcgSettings, progress: Progress
) -> tuple[Probe, tuple[Suffix, ...]]:
    """Search a suffix for every request of the probe; the probe with what is then asked.

    The model is attacked as it stands: with its patch, without its deactivated neurons. Raises
    RequestError for a backend that holds no transformers model or a request that cannot be
    attacked, RunFailure when the search cannot go on.
    """
    settings.check()
    with guest("bitsandbytes"):
        # It brings bitsandbytes along, which tells what kernels it would like to have.
        importlib.import_module("nanogcg")
    # Faults of all requests before the first long search.
    targets = [_target(probe.corpus, row) for row in range(len(probe.corpus.texts))]
    found = []
    with progress.task("suffix search", len(targets), "prompts") as advance:
        for row, target in enumerate(targets):
            found.append(_search(opened, probe.corpus.texts[row], row, target, settings))
            advance(1)
    budget = {"steps": settings.steps, "width": settings.width, "seed": settings.seed}
    return (
        replace(probe, asked=asked_with(found), more={**probe.more, "gcg": budget}),
        tuple(found),
    )


def asked_with(found: Sequence[Suffix]) -> tuple[Asked, ...]:
    """The requests with their suffixes."""
    return tuple(Asked(f"{one.request} {one.text}", one.row, request=one.request) for one in found)


def _target(corpus: Corpus, row: int) -> str:
    if _SLOT in corpus.texts[row]:
        raise RequestError(
            f"row {row + 1} of {corpus.name} contains {_SLOT}, by which the search marks its "
            "suffix; reword it"
        )
    value = corpus.rows[row].get("target", TARGET)
    if not isinstance(value, str) or not value.strip():
        raise RequestError(
            f"row {row + 1} of {corpus.name}: its target is blank; fill the column or leave it out"
        )
    return value


def _choices(model: Any, tokenizer: Any) -> int:
    """nanoGCG's 256 best tokens a place, or as many as there are that it may use.

    Beyond those it would fill up with the tokens it rules out, special ones among them.
    """
    from nanogcg.utils import get_nonascii_toks

    ruled_out = set(get_nonascii_toks(tokenizer).tolist())
    count: int = model.get_input_embeddings().num_embeddings
    return min(256, count - len(ruled_out))


def _search(
    opened: OpenModel, request: str, row: int, target: str, settings: GcgSettings
) -> Suffix:
    import nanogcg

    model = transformers_model(opened.model, opened.backend, "a search for suffixes")
    # nanoGCG writes a template into a tokenizer that has none.
    tokenizer = copy.deepcopy(opened.chat.tokenizer)
    if not opened.chat.has_template:
        tokenizer.chat_template = _PLAIN
    system = opened.chat.system
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": f"{request} {_SLOT}"})
    config = nanogcg.GCGConfig(
        num_steps=settings.steps,
        search_width=settings.width,
        batch_size=min(_AT_ONCE, settings.width),
        topk=_choices(model, tokenizer),
        # Its cache is a list of tensors; transformers 5 takes none.
        use_prefix_cache=False,
        seed=settings.seed + row,
        verbosity="ERROR",
    )
    # nanoGCG collects garbage after every batch of candidates; what lives already need not be gone
    # through each time.
    gc.freeze()
    try:
        with guest("nanogcg"), opened.model.training():
            result = nanogcg.run(model, tokenizer, messages, target, config)
    except RuntimeError as error:
        raise RunFailure(
            f"the search for a suffix for {request[:60]!r} stopped: {error}; try another --seed, "
            "or a lower --gcg-width if memory ran out"
        ) from error
    finally:
        gc.unfreeze()
    return Suffix(
        row, request, target, result.best_string, result.losses[0], result.best_loss, config.seed
    )
