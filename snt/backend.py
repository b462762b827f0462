"""The door for backends: what holds a model's weights, and how the work above reaches them.

A backend is found by its name in the entry-point group `snt.backends` (snt/backend_plugins.py).
How to write one: docs/writing-a-backend.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from snt.backend_plugins import backend_names as backend_names
from snt.backend_plugins import get_backend as get_backend
from snt.errors import RequestError, UnavailableError

if TYPE_CHECKING:
    from torch import Tensor, device, dtype, nn

    from snt.anatomy import Anatomy

# What work may ask of a backend. A command that needs what the chosen one lacks is refused by name.
ABILITIES: Mapping[str, str] = {
    "detect": "show what every layer computes",
    "score": "give the likelihood of text: perplexity, refusal log-odds",
    "generate": "write replies",
    "tune": "train deltas",
    "patch": "run with a patch attached or neurons deactivated",
}


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length. input_ids: (B, T) int64; real: (B, T) bool, False at padding."""

    input_ids: Tensor
    real: Tensor


@dataclass(frozen=True)
class Sampling:
    """Replies that are drawn: each token by a number of `uniform` (B, new tokens), in [0, 1).

    Logits are divided by `temperature`; `top_p` keeps the likeliest tokens that together reach it.
    """

    temperature: float
    top_p: float
    uniform: Tensor


@dataclass(frozen=True)
class Turn:
    """The rotary embedding: turned at position t, unit vector e_d has two entries.

    own: (B, T, D), the entry at d. cross: (B, T, D), the entry at partner[d]. partner: (D,) int64.
    A coordinate that is not turned has own 1, cross 0 and itself for a partner.
    """

    own: Tensor
    cross: Tensor
    partner: Tensor


@dataclass(frozen=True)
class LayerActivations:
    """What one decoder layer computed for one batch; float32.

    R positions of the batch itself attend to T: to themselves, and to T − R before them that all
    its prompts begin with, which were shown apart (see `LoadedModel.observe`).

    middle: (B, R, F), input of the down projection. up: (B, R, F), output of the up projection, or
    None where the family has none of its own. query_raw: (B, H, R, D) and key_raw:
    (B, G, T, D), as they enter the rotary embedding; query, key, value the same after it.
    turn: of T positions. visible: (B, 1 or H, R, T) bool, which positions a position attends to.
    attended: (B, H, R, D). scale: on query·key. softcap c: logits become c·tanh(logits / c) before
    the mask.

    A norm over queries or keys couples coordinates: without raw coordinate d the others of its span
    grow. query_gain, key_gain: that growth minus one, same shape as the raws, or None without a
    norm. gain_span: "head", or "all" where the norm runs over all heads of a position.
    """

    middle: Tensor
    query_raw: Tensor
    key_raw: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    turn: Turn
    visible: Tensor
    attended: Tensor
    scale: float
    softcap: float | None = None
    query_gain: Tensor | None = None
    key_gain: Tensor | None = None
    gain_span: Literal["head", "all"] = "head"
    up: Tensor | None = None


class Visitor(Protocol):
    """Called once per (batch, layer), with weights at hand as float32.

    Layers may come in any order; every layer sees the batches in the order they were given in.
    """

    def __call__(
        self, layer: int, batch: Batch, activations: LayerActivations, model: LoadedModel
    ) -> None: ...


class LoadedModel(Protocol):
    """A model that a backend holds."""

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def device(self) -> device: ...

    @property
    def context(self) -> int | None:
        """Largest number of tokens in a sequence, None when the model does not say."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, shared ones counted once."""

    @property
    def dtype(self) -> dtype:
        """Precision of the weights."""

    def observe(
        self, batches: Iterable[Batch], visitor: Visitor, beginning: Tensor | None = None
    ) -> None:
        """Run every batch through the decoder and show each layer to `visitor`.

        `beginning`, (L,) token ids, comes before every row of every batch, and batches hold only
        what follows. It goes through the decoder once and is shown first, as a batch of one row.
        """

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states (B, T, d_model), before the language-model head."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., vocabulary) of final hidden states (..., d_model), float32."""

    def generate(
        self,
        batch: Batch,
        new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Continuations (B, ≤ new_tokens) of a left-padded batch, greedy without `sampling`.

        A row that has ended is filled with one of `stop_ids`. Memory that runs out is raised as
        torch or Python raises it; the caller then tries fewer rows.
        """

    def weight_digests(self) -> Mapping[str, tuple[int, str]]:
        """Per weight its number of entries and a digest of its bytes, to prove it unchanged."""

    def training(self) -> AbstractContextManager[None]:
        """While a backward pass is wanted: what this backend must set differently for it."""

    def weight(self, layer: int, module: str) -> Tensor:
        """A weight (d_out, d_in) of a decoder layer as float32."""

    def weight_shape(self, layer: int, module: str) -> tuple[int, int]:
        """(d_out, d_in) of a weight, without reading it."""

    def module(self, layer: int, module: str) -> nn.Module:
        """A module of a decoder layer, to attach trainable deltas to."""


class Backend(Protocol):
    """What an entry point of the group names: an object that loads models.

    It may also have `abilities`, a collection of names of `ABILITIES` (without it: all of them),
    and `weight_bytes(size, item)`, see `weight_bytes` below. Listing imports what the entry point
    names, so that should be light: a `LazyBackend`, or a module whose `load` imports the rest.
    """

    name: str
    summary: str

    def load(self, directory: Path, dtype: dtype | None = None) -> LoadedModel:
        """Load a model directory. Raises RequestError for a family that is not served."""

    def fast_dtype(self) -> dtype:
        """The precision in which this machine tunes and generates fastest without harm."""


@dataclass(frozen=True)
class ModelSize:
    """How large a checkpoint is, known before it is loaded.

    `in_layers`: those of the `parameters` that are matrices of decoder layers. `stored`: bytes of
    the weights on disk. `neurons` of one layer. `cache_entries`: keys and values of one token.
    """

    parameters: int
    in_layers: int
    layers: int
    stored: int
    d_model: int
    d_ff: int
    neurons: int
    cache_entries: int
    vocabulary: int


@dataclass(frozen=True)
class LazyBackend:
    """A backend that imports what it is made of when it is first used, and lists without.

    `implementation` is a module or `module:object` with `load` and `fast_dtype`. `requires`: names
    of modules that must be installed, per name the install line. `held_bytes` is `weight_bytes` of
    the backend, None where it holds every parameter in the precision it is loaded in.
    `several_processes`: whether it may run in more than one process at a time.
    """

    name: str
    summary: str
    implementation: str
    abilities: Collection[str] = tuple(ABILITIES)
    requires: Mapping[str, str] | None = None
    held_bytes: Callable[[ModelSize, int], int] | None = None
    several_processes: bool = False

    def missing(self) -> str | None:
        """The install line of what is not installed, or None. Imports nothing."""
        for module, install in (self.requires or {}).items():
            if find_spec(module) is None:
                return install
        return None

    def load(self, directory: Path, dtype: dtype | None = None) -> LoadedModel:
        """As the implementation's. Raises UnavailableError with the install line."""
        loaded: LoadedModel = self._made().load(directory, dtype)
        return loaded

    def fast_dtype(self) -> dtype:
        """As the implementation's. Raises UnavailableError with the install line."""
        found: dtype = self._made().fast_dtype()
        return found

    def around(self, model: Any, tokenizer: Any) -> LoadedModel:
        """A transformers model that is in memory already; of the built-in ones `full` takes it."""
        held: LoadedModel = self._made().around(model, tokenizer)
        return held

    def weight_bytes(self, size: ModelSize, item: int) -> int:
        """Bytes of weights that are held at once; `item` bytes an entry of the precision."""
        return size.parameters * item if self.held_bytes is None else self.held_bytes(size, item)

    def _made(self) -> Any:
        install = self.missing()
        if install is not None:
            raise UnavailableError(f"backend {self.name!r} needs what is not installed; {install}")
        module, _, attribute = self.implementation.partition(":")
        try:
            found = import_module(module)
            return getattr(found, attribute) if attribute else found
        except (ImportError, AttributeError) as error:
            raise UnavailableError(
                f"backend {self.name!r} ({self.implementation}) cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error


def abilities_of(backend: Backend) -> frozenset[str]:
    """What a backend can do; all of `ABILITIES` where it does not say."""
    return frozenset(getattr(backend, "abilities", ABILITIES))


def weight_bytes(backend: Backend, size: ModelSize, item: int) -> int:
    """Bytes of weights that a backend holds at once; `item` bytes an entry of the precision.

    A backend that does not say is taken to hold every parameter.
    """
    own = getattr(backend, "weight_bytes", None)
    return size.parameters * item if own is None else int(own(size, item))


def transformers_model(model: LoadedModel, backend: str, work: str) -> Any:
    """The transformers model that a backend holds as its `model`, for libraries that run one.

    What is attached to its modules (deltas, deactivated neurons) acts there too. Raises
    RequestError, naming the `work`, for a backend that holds none.
    """
    from transformers import PreTrainedModel

    held = getattr(model, "model", None)
    if not isinstance(held, PreTrainedModel):
        raise RequestError(
            f"{work} needs a whole transformers model, and the backend {backend!r} holds none; "
            "use --backend full"
        )
    return held
