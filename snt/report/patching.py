"""What `snt patch` did, for the terminal and for the cards of what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from snt.report.figures import percent
from snt.report.provenance import clean
from snt.report.tables import line, table

_HIDDEN = ("model", "base", "patch", "how", "conflicts", "ranks", "adapter", "warning", "mask")


def apply_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """Entries, rounding, and where the merged model is."""
    kept = (
        f"{report['dtype']} keeps {report['changed']:,} of {report['nonzero']:,} changed entries "
        f"({percent(report['kept_share'], 2)}), off by {percent(report['relative_error'], 2)} of "
        "the change's norm"
    )
    return [*_facts(f"merged into {report['base']}: {report['model']}", report), line(kept)]


def revert_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """What was restored, and where."""
    return _facts(f"reverted: {report['model']}", report)


def made_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """A stacked or scaled patch, and what its parts disagreed on."""
    parts = _facts(f"{report['how']['made']}: {report['patch']}", report)
    for pair, found in report["conflicts"].items():
        places = sum(one["count"] for one in found)
        rule = report["how"]["conflicts"]
        parts.append(line(f"{pair}: {places:,} places in {len(found)} modules, by {rule}"))
    if not report["mask"]:
        parts.append(line("no mask beside it: not every patch had one", "yellow"))
    return parts


def diff_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """Entries and norms of two patches, a row a module."""
    one, two = report["patches"]
    made = table("module", "only 1", "only 2", "both", "|1|", "|2|", "|1 - 2|", "cosine")
    made.columns[0].no_wrap = True
    for name, part in sorted(report["modules"].items(), key=lambda row: (row[0] == "all", row[0])):
        norms = (part["norm_first"], part["norm_second"], part["norm_difference"])
        cosine = part["cosine"]
        made.add_row(
            name,
            *(f"{part[key]:,}" for key in ("only_first", "only_second", "both")),
            *(f"{norm:.3g}" for norm in norms),
            "-" if cosine is None else f"{cosine:.3f}",
        )
    named = line(f"1: {one}, 2: {two}; entries that change, norms of the change")
    if report["same_base"]:
        return [named, made]
    return [named, made, line("the two were trained beside different weights", "yellow")]


def export_table(report: Mapping[str, Any]) -> list[RenderableType]:
    """The adapter, its ranks and its size."""
    return _facts(f"LoRA adapter for {report['base']}: {report['adapter']}", report)


def made_card(report: Mapping[str, Any]) -> str:
    """Markdown for a patch that was made of others; nothing was measured on it."""
    how = report["how"]
    model = clean(str((report["model"] or {}).get("id") or "its base model"))
    source = " and ".join(f"`{name}`" for name in how["patches"])
    act = (
        f"{source}, every delta times {how['scale']:g}"
        if how["made"] == "scale"
        else f"{source}, added up; entries that two of them train: {how['conflicts']}"
    )
    named = f"base_model: {model}\n" if report["model"] else ""
    return (
        f"---\n{named}tags: [safety, snt]\n---\n# Safety neuron patch for {model}\n\n"
        f"Made by `snt patch {how['made']}` of {act}. {report['changed']:,} of "
        f"{report['entries']:,} entries are not zero; largest |Δ| "
        f"{report['max_abs_delta']:.2g}.\n\n"
        "**Not measured as it is**: what its parts did alone says nothing about them together or "
        "at another scale. Measure it with `snt eval PATCH_DIR --baseline base` before you use "
        "it.\n"
    )


def adapter_card(report: Mapping[str, Any], digest: str, card: str) -> str:
    """Markdown for an adapter: what it is, how it is loaded, then the card of its patch."""
    base, rank = report["base"], report["rank"]
    ranks = "every module" if report["uniform"] else "the largest; `rank_pattern` has the others"
    about = f"\n{card.strip()}\n" if card.strip() else "\nThe patch had no card.\n"
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\ntags: [lora, safety, snt]\n---\n"
        f"# LoRA adapter of a safety neuron patch for {base}\n\n"
        f"The patch with digest {digest[:12]} as a product of two factors, one of them one-hot: "
        f"{report['modules']} modules, rank {rank} ({ranks}), alpha equal to the rank. Merged into "
        "float32 weights it gives those of `snt patch apply`, bit for bit.\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(model, "ADAPTER_DIR")\n'
        "```\n\n"
        "The card of the patch follows; the `snt` commands in it take the patch itself.\n" + about
    )


def _facts(title: str, report: Mapping[str, Any]) -> list[RenderableType]:
    made = Table(box=box.SIMPLE, show_header=False)
    made.add_column("fact")
    made.add_column("value", justify="right", overflow="fold")
    for key, value in report.items():
        if key in _HIDDEN or value is None:
            continue
        if isinstance(value, float):
            shown = f"{value:.3g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            shown = f"{value:,}"
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value))
        else:
            shown = str(value)
        made.add_row(key.replace("_", " "), shown)
    return [line(title), made]
