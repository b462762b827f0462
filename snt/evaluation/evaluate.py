"""`eval`: the suites on a model or a patch, beside a baseline, with every reply saved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from snt.atomic import check_writable, sha256_of
from snt.corpora import Corpus
from snt.errors import RequestError
from snt.evaluation.compared import (
    ComparedModel,
    short_name,
    split_name,
)
from snt.evaluation.comparison import compare, perplexity_change
from snt.evaluation.completions import Completion, read_completions
from snt.evaluation.evaluation import Evaluation, replies_file, save, summed_up
from snt.evaluation.gates import parse_gates
from snt.evaluation.held_out import check_held_out
from snt.evaluation.measurement import Measurement, measure
from snt.evaluation.seeds import made_from, origin_of
from snt.evaluation.settings import Settings
from snt.evaluation.suites import METRICS, gate_names
from snt.memory import peak_bytes
from snt.model_refs import resolve
from snt.opening import ModelChoice, opened, patch_directory
from snt.preflight import evaluation_work
from snt.progress import Progress, Silence
from snt.resuming import unfinished_directory
from snt.unfinished_replies import (
    UnfinishedReplies,
    check_resumable,
    clear,
    kept,
)

BASE = "base"


def evaluate(
    model: str | None = None,
    *,
    settings: Settings | None = None,
    baseline: str | None = None,
    base: str | None = None,
    deactivate: Path | None = None,
    compare_with: Sequence[str] = (),
    check_against: Sequence[str] = (),
    force: bool = False,
    fail_if: Sequence[str] = (),
    output: Path = Path("evaluation"),
    resume: bool = False,
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
    `compare_with` are further models or patches, `[NAME=]MODEL`, each beside the baseline, or
    beside `model` where there is none; those that differ in their seeds alone are summed up.
    The prompts are compared with the corpora that patches and masks were made from, and with
    `check_against`: more than 5% of near-duplicates are refused unless `force`. `fail_if` are
    gates (`snt.evaluation.gates`); the caller asks `Evaluation.check` whether one was met.
    Replies that the tuning saved in the patch directory are taken up where they were made the same
    way, and with `resume` those that a stopped run left beside `output`. Raises RequestError and
    children for what cannot be served.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    settings = settings or Settings()
    chosen = settings.chosen(offline)
    gates = parse_gates(
        fail_if,
        gate_names(chosen),
        METRICS,
        baseline is not None or bool(compare_with),
        tasks=settings.tasks is not None,
    )
    check_writable(output, directory=True)
    work = unfinished_directory(output)
    if resume:
        check_resumable(work)
    choice = ModelChoice(model, backend, dtype, system, offline, base, template)
    patch = patch_directory(model)
    named = [split_name(reference) for reference in compare_with]
    origins = [origin_of(patch), *(origin_of(patch_directory(ref)) for _, ref in named)]
    held_out = check_held_out(
        made_from(origins, deactivate),
        chosen,
        given=check_against,
        force=force,
        offline=offline,
        progress=progress,
    )
    ref = None if baseline is None else _baseline_ref(model, baseline, base, patch)
    for reference in (ref, *(ref for _, ref in named)):
        if reference is not None and patch_directory(reference) is None:
            # What is not there is found before the first model is measured, not after.
            resolve(reference, offline=offline, on_progress=progress.say)
    other, other_name = None, None
    other_told: dict[str, Any] = {}
    others: list[ComparedModel] = []
    with kept(work):
        measured, name, description = _run(
            *(choice, settings, chosen, deactivate, _saved(patch, "after")),
            UnfinishedReplies(work / "completions.jsonl"),
            progress,
            # What a stopped run left goes only when the work that takes its place begins.
            None if resume else work,
        )
        if baseline is not None:
            other, other_name, other_told = _run(
                *(replace(choice, ref=ref), settings, chosen, None, _saved(patch, "before")),
                UnfinishedReplies(work / "baseline.jsonl"),
                progress,
            )
        for number, ((asked, one), origin) in enumerate(zip(named, origins[1:], strict=True), 1):
            theirs = patch_directory(one)
            found, model_name, told = _run(
                *(replace(choice, ref=one), settings, chosen, None, _saved(theirs, "after")),
                UnfinishedReplies(work / replies_file(number)),
                progress,
            )
            called = asked or short_name(model_name, theirs)
            others.append(
                ComparedModel.beside(other or measured, found, called, model_name, told, origin)
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
            short_name(name, patch),
            tuple(others),
            held_out=held_out,
            baseline_description=other_told,
        )
        result = summed_up(result, origins, gates)
        save(result)
    return result


def _run(
    choice: ModelChoice,
    settings: Settings,
    chosen: Mapping[str, Corpus],
    deactivate: Path | None,
    reuse: list[Completion],
    unfinished: UnfinishedReplies,
    progress: Progress,
    afresh: Path | None = None,
) -> tuple[Measurement, str, dict[str, Any]]:
    from snt.ablation import deactivated
    from snt.masks import load_mask

    mask = load_mask(deactivate) if deactivate is not None else None
    with ExitStack() as stack:
        work = evaluation_work(
            chosen.items(), settings.new_tokens, settings.batch_size, changed=mask is not None
        )
        held = stack.enter_context(opened(choice, work=work, progress=progress))
        if mask is not None and deactivate is not None:
            warning = held.check_mask(mask)
            if warning:
                progress.say(f"warning: {warning}")
            held = replace(held, deactivated=sha256_of(deactivate))
            stack.enter_context(deactivated(held.model, mask))
        if afresh is not None:
            clear(afresh)
        measured = measure(held, settings, progress, reuse, unfinished)
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
