"""A step of SN-Tune against the published way and against PEFT, on the same batches.

The step is that of `snt tune`: pairs to refuse, then prompts to keep, in parts, and one update by
AdamW, on the same base model in the same precision. Every comparator is timed twice: as its users
write it, and in this project's loop, where what is trainable is all that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.ratios import Row, in_turn, ratios
from benchmarks.tuning_sides import (
    MODEL,
    SHARE,
    Side,
    lora,
    neurons,
    plain_loss,
    plan_of,
    published,
    random_mask,
    shira,
)
from snt.deltas import Deltas, masked_slices
from snt.masks import NeuronMask
from snt.opening import ModelChoice, OpenModel, open_model
from snt.patches import Patch, save_patch
from snt.training import Plan

STEPS = 2  # that a round of a side takes

SIDES: Mapping[str, Callable[[OpenModel, Plan, NeuronMask], Side]] = {
    "neurons": neurons,
    "published": partial(published, loss=plain_loss),
    "published, same loop": published,
    "lora": partial(lora, loss=plain_loss),
    "lora, same loop": lora,
    "shira": partial(shira, loss=plain_loss),
    "shira, same loop": shira,
}


def patch_bytes(opened: OpenModel, mask: NeuronMask) -> tuple[int, int, int]:
    """Bytes of a patch file, of its entries alone, and of its indices."""
    slices = {
        key: (indices, delta.normal_(0.0, 0.01))
        for key, (indices, delta) in Deltas.zeros(masked_slices(mask), opened.model)
        .tensors()
        .items()
    }
    patch = Patch(opened.model.anatomy, slices, opened.fingerprint)
    with TemporaryDirectory() as folder:
        save_patch(patch, Path(folder) / "patch.safetensors")
        size = (Path(folder) / "patch.safetensors").stat().st_size
    return size, 4 * patch.entries, 4 * sum(len(at) for at, _ in slices.values())


def rows(rounds: int, dtype: str = "auto") -> list[Row]:
    """Step time and memory against full fine-tuning, LoRA and SHiRA; the size of a patch."""
    opened = {name: open_model(ModelChoice(MODEL, dtype=dtype)) for name in SIDES}
    first = opened["neurons"]
    mask = random_mask(first.model.anatomy, first.model.parameters)
    plan = plan_of(first, STEPS)
    sides = {name: make(opened[name], plan, mask) for name, make in SIDES.items()}
    seconds = in_turn({name: side.run for name, side in sides.items()}, rounds)
    held = {name: side.held() for name, side in sides.items()}
    size, entries, indices = patch_bytes(first, mask)
    step = {name: sum(one) / len(one) / STEPS for name, one in seconds.items()}
    of = f"{MODEL}, {str(first.model.dtype)[6:]}, mask of {SHARE:.1%}"

    def against(name: str, what: str, bar: float) -> Row:
        what += ", in this loop" if name.endswith("loop") else ""
        note = (
            f"{of}; {step['neurons']:.2f} and {step[name]:.2f} s a step; "
            f"{sides['neurons'].trainable:,} and {sides[name].trainable:,} trainable"
        )
        return Row(
            f"step of SN-Tune / {what}", ratios(seconds["neurons"], seconds[name]), bar, True, note
        )

    return [
        against("published", "full fine-tuning, masked", 0.6),
        against("published, same loop", "full fine-tuning, masked", 0.6),
        Row(
            "memory above the frozen model / full fine-tuning, masked",
            (held["neurons"] / held["published"],),
            0.02,
            True,
            f"gradients, optimizer state and deltas: {held['neurons'] / 1e6:.1f} and "
            f"{held['published'] / 1e6:.1f} MB",
        ),
        against("lora", "PEFT LoRA of equal size", 1.0),
        against("lora, same loop", "PEFT LoRA of equal size", 1.0),
        against("shira", "PEFT SHiRA of equal size", 1.0),
        against("shira, same loop", "PEFT SHiRA of equal size", 1.0),
        Row(
            "size of a patch / (entries × 4 bytes + indices)",
            (size / (entries + indices),),
            1.1,
            True,
            f"{size:,} bytes for {entries // 4:,} entries",
        ),
    ]
