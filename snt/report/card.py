"""The card of a patch: what it is for, what it did, what its numbers do not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from snt.report.figures import LABELS, curve_bar, interval, percent

if TYPE_CHECKING:
    from snt.masks import NeuronMask

_TEXT = """---
base_model: {model}
tags: [safety, snt]
---
# Safety neuron patch for {model}

Float32 deltas of {neurons:,} neurons ({share} of the model's parameters), trained with `snt tune`
to refuse harmful requests while answering all others as before. Every other weight is that of the
base model.

{changed:,} of {masked:,} masked entries changed; largest |Δ| {largest:.2g}; {outside} entries
outside the mask changed. {steps} steps on `{data}`, keeping {retain}.

{table}{curve}
Use it: `snt eval PATCH_DIR`, or `snt patch apply PATCH_DIR -o MODEL_DIR` for a model that plain
transformers loads; `snt patch revert MODEL_DIR -o DIR` undoes that bit for bit.

## What it is for, and what the numbers do not say

This patch strengthens refusals. It is a layer of defence and no guarantee: refusals were counted by
an automatic judge on built-in prompts in English, without jailbreaks. A non-refusal is not yet a
harmful answer, and a refusal rate says nothing about prompts of other kinds. Measure on your own
prompts before you ship.
"""


def patch_card(report: Mapping[str, Any], mask: NeuronMask) -> str:
    """Markdown with the measured figures of a tuning's report."""
    model = report["model"]
    return _TEXT.format(
        model=model["id"],
        neurons=len(mask),
        share=percent(mask.parameters / model["parameters"], 2),
        changed=report["changed"],
        masked=report["masked"],
        largest=report["max_abs_delta"],
        outside=report["outside_changed"],
        steps=report["steps"],
        data=report["data"]["name"],
        retain=", ".join(
            f"`{corpus['name']}`" for corpus in [*report["retain"], *report["retain_text"]]
        )
        or "nothing",
        table=_table(report),
        curve=_curve(report),
    )


def _table(report: Mapping[str, Any]) -> str:
    if "measured" not in report:
        return "Not measured (`--no-measure`).\n"
    before, after = (report["measured"][name] for name in ("before", "after"))
    rows = ["| metric | before | after | 95% interval | n |", "|---|---:|---:|---:|---:|"]
    for metric, label in LABELS.items():
        if metric not in after:
            continue
        now, then = after[metric], before[metric]
        if metric == "perplexity":
            rows.append(f"| {label} | {then['value']:.2f} | {now['value']:.2f} | | {now['n']} |")
            continue
        bounds = interval(now["interval"])
        values = f"{percent(then['value'])} | {percent(now['value'])}"
        rows.append(f"| {label} | {values} | {bounds} | {now['n']} |")
    return "\n".join(rows) + "\n"


def _curve(report: Mapping[str, Any]) -> str:
    """Safety and over-refusal along the run, as a small picture; nothing without a guard."""
    points = report.get("curve")
    if not points:
        return ""
    rows = [
        "\nAlong the run, on held-out prompts (short replies, few prompts: a rough measure):\n",
        "| step | harmful, not refused | look-alike, refused |",
        "|---:|---|---|",
    ]
    for point in points:
        cells = [
            f"`{curve_bar(point[name], 12)}` {percent(point[name], 0)}"
            for name in ("non_refusal", "over_refusal")
        ]
        kept = " (kept)" if point["step"] == report.get("kept_step") else ""
        rows.append(f"| {point['step']}{kept} | {cells[0]} | {cells[1]} |")
    stopped = "\nThe guard on over-refusal ended the run.\n" if report["stopped_by_guard"] else ""
    return "\n".join(rows) + "\n" + stopped
