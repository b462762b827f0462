"""Where a model family keeps its neurons: kinds, modules, offsets, grouped heads.

A neuron is the set of weights that is removed together (Zhao et al., ICLR 2025, section 2). A new
family is one entry in `FAMILIES`; everything above reads neurons through `Anatomy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from snt.errors import FormatError, RequestError

KINDS = ("ffn", "q", "k", "v")
Axis = Literal["rows", "cols"]


@dataclass(frozen=True)
class Slice:
    """One weight's share of a neuron: row (or column) `offset + i` of `module`."""

    module: str
    axis: Axis
    offset: int = 0


@dataclass(frozen=True)
class Family:
    """How one `model_type` of transformers names its parts, relative to a decoder layer."""

    decoder: str = "model"
    layers: str = "model.layers"
    attention: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
}

# Beyond this no size in a file's metadata is believed.
_LARGEST = 1 << 24
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Anatomy:
    """The neurons of one model. Sizes are per decoder layer; every layer has the same."""

    model_type: str
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    attention_bias: bool = False

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    def size(self, kind: str) -> int:
        """Number of neurons of `kind` in one layer."""
        return {
            "ffn": self.d_ff,
            "q": self.heads * self.head_dim,
            "k": self.kv_heads * self.head_dim,
            "v": self.kv_heads * self.head_dim,
        }[kind]

    def neuron_parameters(self, kind: str) -> int:
        """Parameters that are removed with one neuron of `kind`, bias entries included."""
        return 3 * self.d_model if kind == "ffn" else self.d_model + int(self.attention_bias)

    def base_rates(self) -> dict[str, float]:
        """Share of each kind among all neurons of a layer, as fractions."""
        total = sum(self.size(kind) for kind in KINDS)
        return {kind: self.size(kind) / total for kind in KINDS}

    def slices(self, kind: str) -> tuple[Slice, ...]:
        """The weights that one neuron of `kind` consists of."""
        f = self.family
        if kind == "ffn":
            return (Slice(f.gate, "rows"), Slice(f.up, "rows"), Slice(f.down, "cols"))
        return (Slice({"q": f.query, "k": f.key, "v": f.value}[kind], "rows"),)

    def shape(self) -> dict[str, Any]:
        """The part of a fingerprint that must be equal for a mask to make sense."""
        return asdict(self)


def anatomy_from(shape: object) -> Anatomy:
    """Anatomy from the metadata of a file, trusting nothing in it. Raises FormatError."""
    wanted = {field.name for field in fields(Anatomy)}
    if not isinstance(shape, dict) or shape.keys() != wanted:
        raise FormatError(f"its metadata describes no model: {shape!r:.200}")
    sizes = {name: shape[name] for name in wanted - {"model_type", "attention_bias"}}
    sound = all(type(size) is int and 0 < size <= _LARGEST for size in sizes.values())
    bias = shape["attention_bias"]
    if not sound or type(bias) is not bool or shape["heads"] % shape["kv_heads"]:
        raise FormatError(f"its metadata gives sizes that no model has: {shape!r:.200}")
    if shape["model_type"] not in FAMILIES:
        raise FormatError(f"it is for model type {shape['model_type']!r}, which is not served")
    return Anatomy(**shape)


def anatomy_of(config: Any) -> Anatomy:
    """Anatomy of a transformers config. Raises RequestError for a family that is not served."""
    model_type = str(config.model_type)
    experts = next((n for n in _EXPERTS if getattr(config, n, None)), None)
    if experts:
        raise RequestError(
            f"model type {model_type!r} is a mixture of experts ({experts}="
            f"{getattr(config, experts)}); its ffn neurons live in experts, which this version "
            "does not read. Use a dense model"
        )
    if model_type not in FAMILIES:
        raise RequestError(
            f"model type {model_type!r} is not served; served: {', '.join(sorted(FAMILIES))}. "
            "A new family is one entry in snt/anatomy.py"
        )
    heads = int(config.num_attention_heads)
    return Anatomy(
        model_type=model_type,
        layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        d_ff=int(config.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        attention_bias=model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
    )
