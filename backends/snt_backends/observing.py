"""What every layer of a transformers model computes, shown while it runs; all undone at the end.

Attention and experts are seen through transformers' own interfaces, the rest through hooks, so that
no modelling code is copied: whatever a family does between them, it does itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from snt.anatomy import Anatomy, Slice
from snt.backend import LayerActivations, Turn
from snt.errors import RunFailure

_NAME = "snt_observed"
# Elements of the logits that exist at once: 64 MiB. At 4,096 tokens and 32 heads, rows go by 128.
_LOGITS = 1 << 24
_PARTS = ("query_raw", "key_raw", "rope", "query", "key", "value", "attended")


@dataclass(frozen=True)
class _Columns:
    """What a layer's keys are made of, before and beside the cache that holds them turned."""

    raw: Tensor
    gain: Tensor | None
    turn: Turn

    def then(self, after: _Columns) -> _Columns:
        """This beginning before every row of `after`."""
        rows = len(after.raw)

        def joined(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([first.expand(rows, *first.shape[1:]), second], dim=-2)

        gain = None
        if self.gain is not None and after.gain is not None:
            gain = joined(self.gain, after.gain)
        turn = Turn(
            joined(self.turn.own, after.turn.own),
            joined(self.turn.cross, after.turn.cross),
            self.turn.partner,
        )
        return _Columns(joined(self.raw, after.raw), gain, turn)


@dataclass
class Seen:
    """Tensors of the layer that is running; they are handed to `visit` when its middle is known.

    beginning: per layer what the cached beginning of all rows left, empty without one.
    """

    visit: Callable[[int, LayerActivations], None] | None = None
    layers_seen: int = 0
    parts: dict[str, Any] = field(default_factory=dict)
    beginning: dict[int, _Columns] = field(default_factory=dict)
    keep_beginning: bool = False


@contextmanager
def observed(model: Any, layers: list[nn.Module], anatomy: Anatomy) -> Iterator[Seen]:
    """Show every decoder layer of `model` to `visit` while the block runs the decoder.

    Raises RunFailure when a layer computes its attention in a way that cannot be seen.
    """
    seen = Seen()
    hooks: list[Any] = []
    attention_before = model.config._attn_implementation
    experts_before = model.config._experts_implementation
    owners = _owners(layers, anatomy)
    AttentionInterface.register(_NAME, _attention(seen))
    # Without a mask of its own, a registered attention silently becomes non-causal.
    AttentionMaskInterface.register(_NAME, _mask)
    try:
        model.set_attn_implementation(_NAME)
        if owners:
            ALL_EXPERTS_FUNCTIONS.register(_NAME, _experts(seen, owners, anatomy))
            model.set_experts_implementation(_NAME)
        for number, layer in enumerate(layers):
            hooks += _hooks(seen, number, layer, anatomy)
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(attention_before)
        if owners:
            model.set_experts_implementation(experts_before)
        # transformers keeps what was registered, and with it all that the functions hold.
        seen.visit = None
        seen.parts.clear()
        seen.beginning.clear()
        owners.clear()


def _owners(layers: list[nn.Module], anatomy: Anatomy) -> dict[int, tuple[int, nn.Module]]:
    """By id of a layer's experts, its number and itself."""
    family = anatomy.family
    if family.experts is None:
        return {}
    path = family.down.rpartition(".")[0]
    return {id(layer.get_submodule(path)): (at, layer) for at, layer in enumerate(layers)}


def _hooks(seen: Seen, number: int, layer: nn.Module, anatomy: Anatomy) -> list[Any]:
    family = anatomy.family

    def keep(name: str, part: Slice, size: int) -> Any:
        # Only some rows of a fused weight's output are meant.
        whole = size == anatomy.weight_shapes()[part.module][0]
        places = None if whole else part.places(torch.arange(size))

        def hook(_module: Any, _inputs: Any, output: Tensor) -> None:
            mine = output
            if places is not None:
                mine = output.index_select(-1, places.to(output.device))
            seen.parts[name] = mine

        return hook

    def rope(module: Any, _args: Any, keywords: Any) -> None:
        turned = family.rotates is None or bool(getattr(module, family.rotates))
        seen.parts["rope"] = keywords["position_embeddings"] if turned else None

    def hooked(name: str, part: Slice, kind: str) -> Any:
        hook = keep(name, part, anatomy.size(kind))
        return layer.get_submodule(part.module).register_forward_hook(hook)

    hooks = [
        hooked("query_raw", anatomy.slices("q")[0], "q"),
        hooked("key_raw", anatomy.slices("k")[0], "k"),
        layer.get_submodule(family.attention).register_forward_pre_hook(rope, with_kwargs=True),
    ]
    if family.experts is None:
        hooks.append(hooked("up", anatomy.slices("ffn")[-2], "ffn"))
        finish = _finisher(seen, number, layer, anatomy)
        down = layer.get_submodule(family.down)
        hooks.append(down.register_forward_pre_hook(lambda _module, inputs: finish(inputs[0])))
    return hooks


def _finisher(
    seen: Seen, number: int, layer: nn.Module, anatomy: Anatomy
) -> Callable[[Tensor], None]:
    """What hands a layer's tensors on, given its middle (B, T, F) or (B·T, F)."""
    family = anatomy.family

    def entering(flat: Tensor, norm: str) -> tuple[Tensor, Tensor | None]:
        """A projection's (B, T, n·D) output as it enters the rotary embedding, and its gain."""
        split = flat.view(*flat.shape[:2], -1, anatomy.head_dim)
        if family.norm is None:
            return split.transpose(1, 2).float(), None
        module = layer.get_submodule(norm)
        span = split if family.norm == "head" else flat
        normed, gain = module(span).view_as(split), _gain(span, module).view_as(split)
        return normed.transpose(1, 2).float(), gain.transpose(1, 2)

    def finish(middle: Tensor) -> None:
        parts = seen.parts
        missing = [name for name in _PARTS if name not in parts]
        if missing:
            raise RunFailure(
                f"layer {number} of a {anatomy.model_type} model showed no {', '.join(missing)}; "
                "it bypasses transformers' attention interface"
            )
        query_raw, query_gain = entering(parts["query_raw"], family.query_norm)
        columns = _Columns(
            *entering(parts["key_raw"], family.key_norm), _turn(parts["rope"], query_raw)
        )
        if seen.keep_beginning:
            seen.beginning[number] = columns
        elif seen.beginning:
            columns = seen.beginning[number].then(columns)
        activations = LayerActivations(
            middle=middle.view(len(query_raw), -1, middle.shape[-1]),
            query_raw=query_raw,
            key_raw=columns.raw,
            query=parts["query"].float(),
            key=parts["key"].float(),
            value=parts["value"].float(),
            turn=columns.turn,
            visible=parts["visible"],
            attended=parts["attended"].float(),
            scale=parts["scale"],
            softcap=parts["softcap"],
            query_gain=query_gain,
            key_gain=columns.gain,
            gain_span="all" if family.norm == "all" else "head",
            up=parts.get("up"),
        )
        parts.clear()
        seen.layers_seen += 1
        if seen.visit is not None:
            seen.visit(number, activations)

    return finish


def _gain(span: Tensor, norm: Any) -> Tensor:
    """How much the others of (..., n) grow when a coordinate goes, minus one; same shape.

    A root-mean-square norm divides by sqrt((Σ x² + n·eps) / n). float64: where one coordinate holds
    nearly all of the sum, what is left without it would lose its digits.
    """
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    squares = span.double().square()
    share = squares / (squares.sum(dim=-1, keepdim=True) + span.shape[-1] * eps)
    return torch.expm1(-0.5 * torch.log1p(-share)).float()


def _turn(rope: tuple[Tensor, Tensor] | None, raw: Tensor) -> Turn:
    """The turn of (B or 1, T, r) cosines and sines, partners r/2 apart; the rest is not turned.

    raw: (B, H, T, D), for its shape.
    """
    batch, _, tokens, dim = raw.shape
    partner = torch.arange(dim, device=raw.device)
    own, cross = raw.new_ones(batch, tokens, dim), raw.new_zeros(batch, tokens, dim)
    if rope is not None:
        cos, sin = rope
        turned, half = cos.shape[-1], cos.shape[-1] // 2
        own[..., :turned] = cos
        # rotate_half puts −x[d + half] at d < half and x[d − half] at d ≥ half.
        cross[..., :half] = sin[..., half:]
        cross[..., half:turned] = -sin[..., :half]
        partner[:turned] = partner[:turned].roll(half)
    return Turn(own, cross, partner)


def _mask(**request: Any) -> Tensor | None:
    """Who sees whom as booleans, and always: even where plain causality would need no mask."""
    return sdpa_mask(**{**request, "allow_is_causal_skip": False})


def _attention(seen: Seen) -> Any:
    def attention(
        _module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scaling: float,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        visible = mask[..., : key.shape[2]]
        attended = _attended(query, key, value, visible, scaling, softcap)
        seen.parts.update(query=query, key=key, value=value, visible=visible, attended=attended)
        seen.parts.update(scale=scaling, softcap=softcap)
        return attended.transpose(1, 2).contiguous(), None

    return attention


def _attended(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """softmax(query keyᵀ) value (B, H, T, D), by rows, so that few logits exist at once."""
    batch, heads, tokens, dim = query.shape
    groups = key.shape[1]
    step = max(1, _LOGITS // (batch * heads * key.shape[2]))
    precision = torch.promote_types(query.dtype, torch.float32)
    found = []
    for low in range(0, tokens, step):
        # A group's heads lie one after another and share its keys: they are rows of one product.
        rows = query[:, :, low : low + step].reshape(batch, groups, -1, dim)
        logits = (rows @ key.mT).to(precision).mul_(scale)
        if softcap is not None:
            logits = logits.div_(softcap).tanh_().mul_(softcap)
        logits = logits.view(batch, heads, -1, key.shape[2])
        logits.masked_fill_(~visible[:, :, low : low + step], torch.finfo(logits.dtype).min)
        weights = logits.softmax(dim=-1).to(query.dtype)
        product = weights.view(batch, groups, -1, key.shape[2]) @ value
        found.append(product.view(batch, heads, -1, dim))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _experts(seen: Seen, owners: dict[int, tuple[int, nn.Module]], anatomy: Anatomy) -> Any:
    finishers = {key: _finisher(seen, *owner, anatomy) for key, owner in owners.items()}

    def experts(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """hidden: (B·T, d_model); chosen, weights: (B·T, k). A neuron counts as it is weighted."""
        middle = hidden.new_zeros(len(hidden), anatomy.experts, anatomy.d_ff)
        output = torch.zeros_like(hidden)
        for expert in torch.unique(chosen).tolist():
            token, slot = torch.where(chosen == expert)
            inner = nn.functional.linear(hidden[token], module.gate_up_proj[expert])
            inner = (module._apply_gate(inner) * weights[token, slot, None]).to(hidden.dtype)
            middle[token, expert] = inner
            output.index_add_(0, token, nn.functional.linear(inner, module.down_proj[expert]))
        finishers[id(module)](middle.flatten(1))
        return output

    return experts
