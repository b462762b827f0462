"""`eval`: the suites on a model or a patch, beside a baseline, with every reply saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snt import __version__
from snt.atomic import check_writable, sha256_of, whole_directory, write_json
from snt.errors import RequestError
from snt.evaluation.completions import Completion, read_completions, write_completions
from snt.evaluation.measurement import (
    Measurement,
    Settings,
    compare,
    difference_json,
    measure,
    perplexity_change,
)
from snt.evaluation.statistics import PairedDifference
from snt.memory import peak_bytes
from snt.opening import ModelChoice, opened, patch_directory
from snt.progress import Progress, Silence

BASE = "base"


@dataclass(frozen=True)
class Evaluation:
    """What a model did in the suites, and what a baseline did on the same prompts."""

    model: str
    directory: Path
    measured: Measurement
    baseline_model: str | None
    baseline: Measurement | None
    differences: Mapping[str, PairedDifference]
    perplexity_change: tuple[float, float, float] | None
    description: Mapping[str, Any]
    seconds: float
    peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The report of `snt eval --json`."""
        document: dict[str, Any] = {
            "model": self.model,
            **self.description,
            "metrics": self.measured.as_json(),
            "completions": str(self.directory / "completions.jsonl"),
            "replies_reused": self.measured.reused,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "snt": __version__,
        }
        if self.baseline is not None:
            document["baseline"] = {
                "model": self.baseline_model,
                "metrics": self.baseline.as_json(),
                "completions": str(self.directory / "baseline.jsonl"),
            }
            document["differences"] = {
                metric: difference_json(found) for metric, found in self.differences.items()
            }
            if self.perplexity_change is not None:
                change, low, high = self.perplexity_change
                document["differences"]["perplexity"] = {
                    "relative": change,
                    "interval": [low, high],
                }
        return document


def evaluate(
    model: str | None = None,
    *,
    settings: Settings | None = None,
    baseline: str | None = None,
    base: str | None = None,
    deactivate: Path | None = None,
    output: Path = Path("evaluation"),
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    template: str | None = None,
) -> Evaluation:
    """Measure `model`, a model or a patch directory, and `baseline` on the same prompts.

    `baseline` "base" is the model that a patch was made for (`base`, else the one that it names),
    or `model` itself with nothing deactivated. `deactivate` removes a mask's neurons in memory.
    Replies that the tuning saved in the patch directory are taken up where they were made the same
    way. Raises RequestError and children for what cannot be served.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    settings = settings or Settings()
    settings.chosen(offline)
    check_writable(output)
    choice = ModelChoice(model, backend, dtype, system, offline, base, template)
    patch = patch_directory(model)
    measured, name, description = _run(
        choice, settings, deactivate, _saved(patch, "after"), progress
    )
    other, other_name = None, None
    if baseline is not None:
        ref = _baseline_ref(model, baseline, base, patch)
        other, other_name, _ = _run(
            replace(choice, ref=ref), settings, None, _saved(patch, "before"), progress
        )
    result = Evaluation(
        name,
        output,
        measured,
        other_name,
        other,
        compare(other, measured) if other else {},
        perplexity_change(other, measured) if other else None,
        description,
        time.perf_counter() - started,
        peak_bytes(),
    )
    with whole_directory(output) as directory:
        write_completions(directory / "completions.jsonl", measured.completions)
        if other is not None:
            write_completions(directory / "baseline.jsonl", other.completions)
        write_json(directory / "report.json", result.as_json())
    return result


def _run(
    choice: ModelChoice,
    settings: Settings,
    deactivate: Path | None,
    reuse: list[Completion],
    progress: Progress,
) -> tuple[Measurement, str, dict[str, Any]]:
    from snt.ablation import deactivated
    from snt.masks import load_mask

    mask = load_mask(deactivate) if deactivate is not None else None
    with ExitStack() as stack:
        held = stack.enter_context(opened(choice, progress=progress))
        if mask is not None and deactivate is not None:
            warning = held.check_mask(mask)
            if warning:
                progress.say(f"warning: {warning}")
            held = replace(held, deactivated=sha256_of(deactivate))
            stack.enter_context(deactivated(held.model, mask))
        measured = measure(held, settings, progress, reuse)
        if measured.reused:
            progress.say(f"{measured.reused} replies were taken from the patch's own completions")
        name = held.id + (" + patch" if held.patch_digest else "")
        name += " - deactivated neurons" if mask is not None else ""
        description = {
            **held.describe(),
            "patch": held.patch_digest,
            "deactivated": held.deactivated,
            "generation": settings.generation(),
        }
        return measured, name, {key: description[key] for key in description if key != "model"}


def _baseline_ref(
    model: str | None, baseline: str, base: str | None, patch: Path | None
) -> str | None:
    if baseline != BASE:
        return baseline
    if patch is None or base is not None:
        return base or model
    from snt.opening import named_model
    from snt.patches import load_patch

    name = named_model(load_patch(patch / "patch.safetensors"))
    if name is None or "/" not in name:
        raise RequestError(
            f"the patch names its base model {name!r}, a local directory; give it as --base"
        )
    return name


def _saved(patch: Path | None, name: str) -> list[Completion]:
    path = patch / "completions" / f"{name}.jsonl" if patch else None
    return read_completions(path) if path is not None and path.is_file() else []
