"""`tune`: SN-Tune. Only the mask's slices learn to refuse, and everything else is held in place.

Source of the idea: Zhao et al., ICLR 2025, section 4. The retain objective, the proof and the
measurement before and after are this project's.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from snt import __version__, corpora
from snt.atomic import check_writable, sha256_of, whole_directory, write_json, write_text
from snt.corpora import TrainingPairs
from snt.deltas import Deltas, check_tunable, digest_of, masked_slices
from snt.errors import NegativeResult, RequestError, RunFailure
from snt.evaluation.comparison import metric_values
from snt.evaluation.completions import read_completions, write_completions
from snt.evaluation.measurement import Measurement, measure
from snt.evaluation.settings import Settings
from snt.masks import NeuronMask, load_mask, save_mask
from snt.memory import peak_bytes, release
from snt.objective import Kept, Pair
from snt.opening import ModelChoice, OpenModel, named_model, open_model
from snt.patches import Patch, load_patch, save_patch
from snt.preflight import Work, evaluation_work, tokens_of, tuning_work
from snt.progress import Progress, Silence
from snt.report.card import patch_card
from snt.retaining import kept_corpora
from snt.training import Plan, Schedule, Training, train

RETAIN = ("harmless/tune", "lookalike/tune")
POSITIONS = 5
SAVE_STEPS = 25


@dataclass(frozen=True)
class Proof:
    """What a tuning changed, read back from the saved patch.

    `masked` entries of the masked slices, `changed` of them not zero any more; `outside_changed`
    entries of the base model's weights that differ from before the training.
    """

    masked: int
    changed: int
    max_abs_delta: float
    mean_abs_delta: float
    outside_changed: int


@dataclass(frozen=True)
class Tuning:
    """A saved patch, the proof that it changed something, and what it did to the model."""

    patch: Path
    steps: int
    proof: Proof
    losses: Training
    before: Measurement | None
    after: Measurement | None
    seconds: float
    peak_bytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The report of `snt tune --json`, also saved as report.json."""
        document = {
            "patch": self.patch.name,
            "steps": self.steps,
            "trainable": self.proof.masked,
            "masked": self.proof.masked,
            "changed": self.proof.changed,
            "max_abs_delta": self.proof.max_abs_delta,
            "mean_abs_delta": self.proof.mean_abs_delta,
            "outside_changed": self.proof.outside_changed,
            "loss": {"refuse": list(self.losses.refuse), "retain": list(self.losses.retain)},
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            **self.settings,
        }
        if self.before is not None and self.after is not None:
            document["before"] = metric_values(self.before)
            document["after"] = metric_values(self.after)
            document["measured"] = {"before": self.before.as_json(), "after": self.after.as_json()}
        return document


def tune(
    model: str | None = None,
    *,
    mask: Path,
    data: str = "refusals/tune",
    retain: Sequence[str] = RETAIN,
    output: Path = Path("patch"),
    schedule: Schedule | None = None,
    positions: int = POSITIONS,
    evaluate: Settings | None = None,
    resume: bool = False,
    backend: str | None = None,
    dtype: str = "auto",
    system: str | None = None,
    offline: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Tuning:
    """Train float32 deltas of the mask's slices on `data`, keep `retain` as it was, save a patch.

    `model` left out is the one that the mask names. `positions` is how many positions of the
    model's own response to a retained prompt are kept. `evaluate` None leaves the measurement out.
    Raises RequestError and children for what cannot be served, RunFailure when the training or the
    proof fails, NegativeResult when nothing changed.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    schedule = schedule or Schedule()
    check_writable(output)
    held = load_mask(mask)
    if not len(held):
        raise RequestError(f"{mask} holds no neuron; there is nothing to tune")
    check_tunable(held)
    pairs = corpora.load_pairs(data, offline=offline, progress=progress)
    kept = [corpora.load(name, offline=offline, progress=progress) for name in retain]
    measurement = None if evaluate is None else _measurement_work(evaluate, offline)
    # The system message of the data is the one that the model must refuse under.
    system = pairs.system if system is None else system
    choice = ModelChoice(model, backend, dtype, system, offline)
    texts = (
        *(" ".join(pair) for pair in pairs.pairs),
        *(text for one in kept for text in one.texts),
    )
    asked = tuning_work(
        held.parameters,
        schedule.steps(len(pairs.pairs)),
        schedule.batch + schedule.retain_batch * bool(kept),
        max(map(tokens_of, texts)),
        measurement,
    )
    opened = open_model(choice, named=named_model(held), work=asked, progress=progress)
    warning = opened.check_mask(held)
    if warning:
        progress.say(f"warning: {warning}")
    work = checkpoint_directory(output)
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    elif not any(work.glob("checkpoint-*")):
        raise RequestError(f"there is no checkpoint in {work} to resume from; leave --resume out")
    before = _measured(opened, evaluate, work / "before.jsonl", progress)
    targets = kept_corpora(opened.model, opened.chat, kept, positions, progress)
    release()
    trained, losses, changed = _train(
        opened, held, pairs, targets, schedule, work, resume, progress
    )
    tuned = replace(opened, patch_digest=digest_of(trained.tensors()))
    with trained.attached(opened.model):
        after = None if evaluate is None else measure(tuned, evaluate, progress)
    patch = Patch(
        opened.model.anatomy,
        trained.tensors(),
        opened.fingerprint,
        {
            **opened.describe(),
            "data": pairs.describe(),
            "retain": [corpus.describe() for corpus in kept],
            "schedule": schedule.as_json(),
            "positions": positions,
            "mask_sha256": sha256_of(mask),
            "snt": __version__,
        },
    )
    settings = {
        "model": opened.describe()["model"],
        "backend": opened.backend,
        "dtype": opened.describe()["dtype"],
        "mask_warning": warning,
        "schedule": schedule.as_json(),
        "positions": positions,
        "data": pairs.describe(),
        "retain": [corpus.describe() for corpus in kept],
        "system_prompt": system,
    }
    with whole_directory(output) as directory:
        save_patch(patch, directory / "patch.safetensors")
        save_mask(held, directory / "mask.safetensors")
        proof = prove(directory / "patch.safetensors", patch, changed)
        tuning = Tuning(
            output,
            losses.steps,
            proof,
            losses,
            before,
            after,
            time.perf_counter() - started,
            peak_bytes(),
            settings,
        )
        for name, measured in (("before", before), ("after", after)):
            # Kept beside the patch, so that an evaluation need not make the replies again.
            if measured is not None and measured.completions:
                write_completions(directory / "completions" / f"{name}.jsonl", measured.completions)
        write_json(directory / "report.json", tuning.as_json())
        write_text(directory / "command.txt", command + "\n")
        write_text(directory / "README.md", patch_card(tuning.as_json(), held))
    shutil.rmtree(work, ignore_errors=True)
    return tuning


def prove(path: Path, patch: Patch, outside_changed: int) -> Proof:
    """Read a saved patch back and compare it with what was trained.

    Raises RunFailure when the file differs or a base weight changed, NegativeResult when no entry
    changed.
    """
    saved = load_patch(path)
    for key, (indices, delta) in patch.slices.items():
        found = saved.slices.get(key)
        if found is None or not (torch.equal(found[0], indices) and torch.equal(found[1], delta)):
            raise RunFailure(f"{key} of the saved patch is not what was trained; run it again")
    if outside_changed:
        raise RunFailure(
            f"{outside_changed} entries of the base weights changed during the training; the "
            "backend does not keep them frozen"
        )
    deltas = [delta for _, delta in saved.slices.values()]
    masked = sum(delta.numel() for delta in deltas)
    changed = sum(int((delta != 0).sum()) for delta in deltas)
    if not changed:
        raise NegativeResult(
            f"tuning changed none of {masked} masked entries; raise --lr or --epochs"
        )
    total = sum(float(delta.abs().sum()) for delta in deltas)
    largest = max(float(delta.abs().max()) for delta in deltas)
    return Proof(masked, changed, largest, total / masked, outside_changed)


def _measurement_work(evaluate: Settings, offline: bool) -> Work:
    chosen = evaluate.chosen(offline)
    return evaluation_work(chosen.items(), evaluate.new_tokens, evaluate.batch_size)


def checkpoint_directory(output: Path) -> Path:
    """Where an unfinished tuning keeps its checkpoints: beside the patch it will become."""
    return output.with_name(f"{output.name}.unfinished")


def _measured(
    opened: OpenModel, settings: Settings | None, path: Path, progress: Progress
) -> Measurement | None:
    """Measure the untouched model; replies of an interrupted run are taken up again."""
    if settings is None:
        return None
    reuse = read_completions(path) if path.is_file() else []
    found = measure(opened, settings, progress, reuse)
    if found.completions:
        write_completions(path, found.completions)
    return found


def _train(
    opened: OpenModel,
    mask: NeuronMask,
    pairs: TrainingPairs,
    targets: Sequence[Sequence[Kept]],
    schedule: Schedule,
    work: Path,
    resume: bool,
    progress: Progress,
) -> tuple[Deltas, Training, int]:
    """Trained deltas, the losses, and how many entries of base weights changed."""
    examples = [Pair(*opened.chat.pair_ids(*pair)) for pair in pairs.pairs]
    plan = Plan(examples, targets, schedule, opened.chat.pad_id)
    deltas = Deltas.zeros(masked_slices(mask), opened.model)
    digests = opened.model.weight_digests()
    with progress.task("training", plan.steps, "steps") as advance:
        done = 0

        def on_step(step: int, _losses: Mapping[str, float]) -> None:
            nonlocal done
            advance(step - done)
            done = step

        losses = train(opened.model, deltas, plan, work, resume, SAVE_STEPS, on_step)
    now = opened.model.weight_digests()
    changed = sum(size for name, (size, digest) in now.items() if digests[name][1] != digest)
    return deltas, losses, changed
