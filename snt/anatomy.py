"""Where a model family keeps its neurons: kinds, modules, offsets, grouped heads.

A neuron is the set of weights that is removed together (Zhao et al., ICLR 2025, section 2). A new
family is one entry in `FAMILIES` (snt/families.py); everything above reads neurons through
`Anatomy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, overload

from snt.errors import FormatError, RequestError
from snt.families import FAMILIES, REFUSED, Family

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("ffn", "q", "k", "v")
Axis = Literal["rows", "cols"]

# Beyond this no size in a file's metadata is believed.
_LARGEST = 1 << 24
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Slice:
    """One weight's share of the neurons of a kind: rows (or columns) of `module`.

    Neuron i has place `offset + i`. Where `block` is set neurons lie in blocks of that length,
    whose starts are `stride` apart. A weight of all experts counts as one matrix: (E, out, in) as
    rows (E·out, in), and as columns (out, E·in).
    """

    module: str
    axis: Axis
    offset: int = 0
    block: int = 0
    stride: int = 0

    @overload
    def places(self, neurons: int) -> int: ...
    @overload
    def places(self, neurons: Tensor) -> Tensor: ...

    def places(self, neurons: int | Tensor) -> int | Tensor:
        """Neuron indices -> rows or columns of the weight."""
        if not self.block:
            return neurons + self.offset
        return neurons // self.block * self.stride + neurons % self.block + self.offset


@dataclass(frozen=True)
class Anatomy:
    """The neurons of one model. Sizes are per decoder layer; every layer has the same.

    d_ff: neurons of the feed-forward block, in a mixture those of one expert. Its ffn neuron
    (expert e, i) has the index e·d_ff + i.
    """

    model_type: str
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    attention_bias: bool = False
    mlp_bias: bool = False
    experts: int = 1

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
            "ffn": self.experts * self.d_ff,
            "q": self.heads * self.head_dim,
            "k": self.kv_heads * self.head_dim,
            "v": self.kv_heads * self.head_dim,
        }[kind]

    def neuron_parameters(self, kind: str) -> int:
        """Parameters that are removed with one neuron of `kind`, bias entries included."""
        parts = self.slices(kind)
        rows = sum(part.axis == "rows" for part in parts)
        biased = self.mlp_bias if kind == "ffn" else self.attention_bias
        return len(parts) * self.d_model + rows * int(biased)

    def base_rates(self) -> dict[str, float]:
        """Share of each kind among all neurons of a layer, as fractions."""
        total = sum(self.size(kind) for kind in KINDS)
        return {kind: self.size(kind) / total for kind in KINDS}

    def slices(self, kind: str) -> tuple[Slice, ...]:
        """The weights that one neuron of `kind` consists of."""
        f = self.family
        if kind == "ffn":
            down = Slice(f.down, "cols")
            if f.gate is None:
                return (Slice(f.up, "rows"), down)
            if f.gate != f.up:
                return (Slice(f.gate, "rows"), Slice(f.up, "rows"), down)
            gate, up = (Slice(f.up, "rows", at, self.d_ff, 2 * self.d_ff) for at in (0, self.d_ff))
            return (gate, up, down)
        number = ("q", "k", "v").index(kind)
        module = (f.query, f.key, f.value)[number]
        if f.fused == "per head":
            return (
                Slice(module, "rows", number * self.head_dim, self.head_dim, 3 * self.head_dim),
            )
        before = ("q", "k")[:number] if f.fused == "stacked" else ()
        return (Slice(module, "rows", sum(self.size(other) for other in before)),)

    def in_experts(self, module: str) -> bool:
        """Whether `module` is a parameter of all experts together, (experts, out, in)."""
        f = self.family
        return f.experts is not None and module in (f.gate, f.up, f.down)

    def weight_shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every module of a layer that holds neurons, experts as one matrix."""
        found: dict[str, tuple[int, int]] = {}
        for kind in KINDS:
            for part in self.slices(kind):
                end = part.places(self.size(kind) - 1) + 1
                if part.axis == "cols":
                    found[part.module] = (self.d_model, end)
                else:
                    # The last part of a fused weight ends where the weight does.
                    end = max(end, found.get(part.module, (0, 0))[0])
                    found[part.module] = (end, self.d_model)
        return found

    def shape(self) -> dict[str, Any]:
        """The part of a fingerprint that must be equal for a mask to make sense."""
        # What most models have is left out, so that their files stay as they always were.
        found = asdict(self)
        return {k: v for k, v in found.items() if _USUAL.get(k, _NOTHING) != v}


_NOTHING = object()
_USUAL: Mapping[str, object] = {"mlp_bias": False, "experts": 1}


def anatomy_from(shape: object) -> Anatomy:
    """Anatomy from the metadata of a file, trusting nothing in it. Raises FormatError."""
    allowed = {field.name for field in fields(Anatomy)}
    if not isinstance(shape, dict) or not allowed - _USUAL.keys() <= shape.keys() <= allowed:
        raise FormatError(f"its metadata describes no model: {shape!r:.200}")
    biases = {name: shape[name] for name in ("attention_bias", "mlp_bias") if name in shape}
    sizes = {name: shape[name] for name in shape.keys() - biases.keys() - {"model_type"}}
    sound = all(type(size) is int and 0 < size <= _LARGEST for size in sizes.values())
    known = all(type(bias) is bool for bias in biases.values())
    if not sound or not known or sizes["heads"] % sizes["kv_heads"]:
        raise FormatError(f"its metadata gives sizes that no model has: {shape!r:.200}")
    model_type = shape["model_type"]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise FormatError(f"it is for model type {model_type!r:.80}, which is not served")
    found = Anatomy(**shape)
    odd = (found.experts > 1 and not found.family.experts) or (
        found.group > 1 and found.family.fused == "per head"
    )
    if odd or max(map(found.size, KINDS)) > _LARGEST:
        raise FormatError(f"its metadata gives sizes that no model has: {shape!r:.200}")
    return found


def anatomy_of(config: Any) -> Anatomy:
    """Anatomy of a transformers config. Raises RequestError for a family that is not served."""
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise RequestError(f"model type {model_type!r} is not served: {_reason(config)}")
    family = FAMILIES[model_type]
    wrong = family.wrong(config)
    if wrong is None and family.experts is None:
        wrong = _mixed(config)
    if wrong is not None:
        raise RequestError(f"this {model_type!r} model is not served: {wrong}")
    heads = int(config.num_attention_heads)
    return Anatomy(
        model_type=model_type,
        layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        d_ff=int(getattr(config, family.d_ff)),
        heads=heads,
        kv_heads=heads if family.fused == "per head" else _key_heads(config, heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        attention_bias=_flag(config, "attention_bias", family.attention_bias),
        mlp_bias=_flag(config, "mlp_bias", family.mlp_bias),
        experts=int(getattr(config, family.experts)) if family.experts else 1,
    )


def _key_heads(config: Any, heads: int) -> int:
    return int(getattr(config, "num_key_value_heads", None) or heads)


def _flag(config: Any, name: str, fixed: bool | None) -> bool:
    return bool(getattr(config, name, False)) if fixed is None else fixed


def _reason(config: Any) -> str:
    if config.model_type in REFUSED:
        return REFUSED[config.model_type]
    experts = _mixed(config)
    served = f"Served: {', '.join(sorted(FAMILIES))}. A new family is one entry in snt/families.py"
    return f"{experts or 'no entry says where it keeps its neurons'}. {served}"


def _mixed(config: Any) -> str | None:
    found = next((name for name in _EXPERTS if getattr(config, name, None)), None)
    return found and (
        f"it is a mixture of experts ({found}={getattr(config, found)}) whose experts are laid out "
        "in a way that no entry describes"
    )
