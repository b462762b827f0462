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
from snt.training import Plan, step_loss

STEPS = 2  # that a round of a side takes
LOOP = ", in this loop"

COMPARED: Mapping[str, Callable[[OpenModel, Plan, NeuronMask], Side]] = {
    "published": published,
    "lora": lora,
    "shira": shira,
}
SIDES = {"neurons": neurons, **COMPARED}


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
    runs = {"neurons": partial(sides["neurons"].run, step_loss)}
    for name in COMPARED:
        runs[name] = partial(sides[name].run, plain_loss)
        runs[name + LOOP] = partial(sides[name].run, step_loss)
    seconds = in_turn(runs, rounds)
    held = {name: side.held() for name, side in sides.items()}
    size, entries, indices = patch_bytes(first, mask)
    ours = seconds["neurons"]
    of = f"{MODEL}, {str(first.model.dtype)[6:]}, mask of {SHARE:.1%}"

    def against(name: str, loop: str, what: str, bar: float) -> Row:
        theirs = seconds[name + loop]
        step, other = (sum(one) / len(one) / STEPS for one in (ours, theirs))
        note = (
            f"{of}; {step:.2f} and {other:.2f} s a step; "
            f"{sides['neurons'].trainable:,} and {sides[name].trainable:,} trainable"
        )
        return Row(f"step of SN-Tune / {what}{loop}", ratios(ours, theirs), bar, True, note)

    return [
        against("published", "", "full fine-tuning, masked", 0.6),
        against("published", LOOP, "full fine-tuning, masked", 0.6),
        Row(
            "memory above the frozen model / full fine-tuning, masked",
            (held["neurons"] / held["published"],),
            0.02,
            True,
            f"gradients, optimizer state and deltas: {held['neurons'] / 1e6:.1f} and "
            f"{held['published'] / 1e6:.1f} MB",
        ),
        against("lora", "", "PEFT LoRA of equal size", 1.0),
        against("lora", LOOP, "PEFT LoRA of equal size", 1.0),
        against("shira", "", "PEFT SHiRA of equal size", 1.0),
        against("shira", LOOP, "PEFT SHiRA of equal size", 1.0),
        Row(
            "size of a patch / (entries × 4 bytes + indices)",
            (size / (entries + indices),),
            1.1,
            True,
            f"{size:,} bytes for {entries // 4:,} entries",
        ),
    ]
