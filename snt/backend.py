"""The door for backends: what holds a model's weights, and how the work above reaches them.

A backend is found by its name in the entry-point group `snt.backends`; built-ins use the same door
as anybody else's. Only the chosen one is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from snt.errors import RequestError, UnavailableError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, device, dtype, nn

    from snt.anatomy import Anatomy

GROUP = "snt.backends"


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length. input_ids: (B, T) int64; real: (B, T) bool, False at padding."""

    input_ids: Tensor
    real: Tensor


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

    def generate(self, batch: Batch, new_tokens: int, stop_ids: Sequence[int]) -> Tensor:
        """Greedy continuations (B, ≤ new_tokens) of a left-padded batch.

        A row that has ended is filled with one of `stop_ids`.
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
    """What an entry point of the group names: an object that loads models."""

    name: str
    summary: str

    def load(self, directory: Path, dtype: dtype | None = None) -> LoadedModel:
        """Load a model directory. Raises RequestError for a family that is not served."""

    def fast_dtype(self) -> dtype:
        """The precision in which this machine tunes and generates fastest without harm."""


def backend_names() -> list[str]:
    """Installed backends, sorted, none of them imported. Duplicate names are refused."""
    return sorted(_installed())


def get_backend(name: str) -> Backend:
    """Import the backend `name`. Raises UnknownNameError or UnavailableError with its fault."""
    installed = _installed()
    if name not in installed:
        raise unknown_name("backend", name, installed)
    try:
        backend: Backend = installed[name].load()
    except Exception as error:  # a plugin may fail in any way it likes
        raise UnavailableError(
            f"backend {name!r} ({installed[name].value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    return backend


def _installed() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in found and found[point.name].value != point.value:
            raise RequestError(
                f"two backends are named {point.name!r}: {found[point.name].value} and "
                f"{point.value}; uninstall one of them"
            )
        found[point.name] = point
    return found
