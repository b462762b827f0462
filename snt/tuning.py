"""`tune`: SN-Tune. Only the mask's slices learn to refuse, and everything else is held in place.

Source of the idea: Zhao et al., ICLR 2025, section 4. The retain objective, the proof and the
measurement before and after are this project's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snt import __version__, corpora
from snt.atomic import check_writable, sha256_of, whole_directory, write_json, write_text
from snt.corpora import Corpus
from snt.deltas import Deltas, check_tunable, digest_of, masked_slices
from snt.errors import RequestError
from snt.evaluation.comparison import metric_values
from snt.evaluation.completions import read_completions, write_completions
from snt.evaluation.measurement import Measurement, measure
from snt.evaluation.settings import Settings
from snt.guarding import EVERY, HARMFUL, LOOKALIKE, guard_of
from snt.loggers import check_loggers
from snt.masks import NeuronMask, load_mask, save_mask
from snt.memory import peak_bytes, release
from snt.objective import Pair
from snt.opening import ModelChoice, OpenModel, named_model, open_model
from snt.patches import Patch, save_patch
from snt.preflight import Work, evaluation_work, tokens_of, tuning_work
from snt.processes import remove_tree
from snt.progress import Progress, Silence
from snt.proving import Proof as Proof
from snt.proving import prove as prove
from snt.proving import rounding_warning, typical_size
from snt.report.card import patch_card
from snt.resuming import unfinished_directory
from snt.retaining import ANSWERED, kept_corpora, kept_texts
from snt.training import Plan, Schedule, Training, train
from snt.training_pairs import TrainingPairs
from snt.training_plan import PART
from snt.tuning_runs import begin, logs_directory

RETAIN = ("harmless/tune", "lookalike/tune")
RETAIN_TEXT = ("prose/tune",)
POSITIONS = 5
SAVE_STEPS = 25
_REPORTED = (
    *("schedule", "positions", "data", "retain", "retain_text", "guard", "template"),
    "gradient_checkpointing",
)


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
            "loss": {
                "refuse": list(self.losses.refuse),
                "retain": list(self.losses.retain),
                "text": list(self.losses.text),
            },
            "curve": [point.as_json() for point in self.losses.curve],
            "stopped_by_guard": self.losses.stopped,
            "kept_step": self.losses.kept_step,
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
    retain_text: Sequence[str] = RETAIN_TEXT,
    template: str | None = None,
    guard_every: int | None = None,
    max_over_refusal: float | None = None,
    guard_corpora: tuple[str, str] = (HARMFUL, LOOKALIKE),
    gradient_checkpointing: bool = False,
    report_to: Sequence[str] = (),
) -> Tuning:
    """Train float32 deltas of the mask's slices on `data`, keep `retain` as it was, save a patch.

    `model` left out is the one that the mask names. `positions` is how many positions of the
    model's own response to a retained prompt are kept; of `retain_text`, plain texts, all are.
    `evaluate` None leaves the measurement out. Every `guard_every` steps (None: never, unless there
    is a limit) beginnings of replies to `guard_corpora` are read; when more look-alikes than
    `max_over_refusal` are refused the run stops, and the best point before is kept. `report_to`
    names loggers of the Trainer. Raises RequestError and children for what cannot be served,
    RunFailure when the training or the proof fails, NegativeResult when nothing changed or no point
    was within the guard's limit.
    """
    started = time.perf_counter()
    progress = progress or Silence()
    schedule = schedule or Schedule()
    check_writable(output, directory=True)
    held = load_mask(mask)
    if not len(held):
        raise RequestError(f"{mask} holds no neuron; there is nothing to tune")
    check_tunable(held)
    if positions < 1:
        raise RequestError(f"{positions} positions of a kept answer; give at least 1")
    pairs = corpora.load_pairs(data, offline=offline, progress=progress)
    kept, texts, watched = (
        [corpora.load(name, offline=offline, progress=progress) for name in names]
        for names in (retain, retain_text if schedule.text_weight else (), guard_corpora)
    )
    check_loggers(report_to)
    # The system message of the data is the one that the model must refuse under.
    system = pairs.system if system is None else system
    choice = ModelChoice(model, backend, dtype, system, offline, template=template)
    asked = _work(held, schedule, pairs, kept, evaluate, gradient_checkpointing, offline)
    opened = open_model(choice, named=named_model(held), work=asked, progress=progress)
    warning = opened.check_mask(held)
    if warning:
        progress.say(f"warning: {warning}")
    slices = masked_slices(held)
    steps = schedule.steps(len(pairs.pairs))
    rounding = rounding_warning(schedule.learning_rate, steps, typical_size(slices, opened.model))
    if rounding:
        progress.say(f"warning: {rounding}")
    guard = None
    if guard_every is not None or max_over_refusal is not None:
        every = EVERY if guard_every is None else guard_every
        harmful, lookalike = watched
        guard = guard_of(opened.model, opened.chat, harmful, lookalike, every, max_over_refusal)
    made = {
        **opened.describe(),
        "data": pairs.describe(),
        "retain": [corpus.describe() for corpus in kept],
        "retain_text": [corpus.describe() for corpus in texts],
        "schedule": schedule.as_json(),
        "positions": positions,
        "guard": guard and guard.describe(),
        "gradient_checkpointing": gradient_checkpointing,
        "mask_sha256": sha256_of(mask),
        "snt": __version__,
    }
    work, logs = unfinished_directory(output), logs_directory(output)
    begin(work, made, resume)
    if report_to and not resume:
        # A chart of two runs in one is of neither.
        remove_tree(logs)
    before = _measured(opened, evaluate, work / "before.jsonl", progress)
    targets = kept_corpora(opened.model, opened.chat, kept, positions, progress)
    plain = [text for corpus in texts for text in corpus.texts]
    plan = Plan(
        [Pair(*opened.chat.pair_ids(*pair)) for pair in pairs.pairs],
        targets,
        schedule,
        opened.chat.pad_id,
        kept_texts(opened.model, opened.chat, plain),
    )
    release()
    trained = Deltas.zeros(slices, opened.model)
    losses, changed = _train(
        opened,
        trained,
        plan,
        work,
        resume,
        progress,
        guard=guard,
        gradient_checkpointing=gradient_checkpointing,
        report_to=report_to,
        logs=logs,
    )
    tuned = replace(opened, patch_digest=digest_of(trained.tensors()))
    with trained.attached(opened.model):
        after = None if evaluate is None else measure(tuned, evaluate, progress)
    patch = Patch(opened.model.anatomy, trained.tensors(), opened.fingerprint, made)
    settings = {
        "model": opened.describe()["model"],
        "backend": opened.backend,
        "dtype": opened.describe()["dtype"],
        "mask_warning": warning,
        "rounding_warning": rounding,
        "system_prompt": system,
        **{name: made[name] for name in _REPORTED},
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
    remove_tree(work)
    return tuning


def _work(
    mask: NeuronMask,
    schedule: Schedule,
    pairs: TrainingPairs,
    kept: Sequence[Corpus],
    evaluate: Settings | None,
    checkpointing: bool,
    offline: bool,
) -> Work:
    """What the tuning will ask of the backend. Raises as `Settings.chosen` does."""
    measured = None
    if evaluate is not None:
        chosen = evaluate.chosen(offline).items()
        measured = evaluation_work(chosen, evaluate.new_tokens, evaluate.batch_size)
    rows = (*(" ".join(pair) for pair in pairs.pairs), *(t for one in kept for t in one.texts))
    return tuning_work(
        mask.parameters,
        schedule.steps(len(pairs.pairs)) * (schedule.batch + schedule.retain_batch * bool(kept)),
        list(map(tokens_of, rows)),
        measured,
        checkpointing,
        trained_rows=PART,
        answered_rows=ANSWERED,
    )


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
    deltas: Deltas,
    plan: Plan,
    work: Path,
    resume: bool,
    progress: Progress,
    **more: Any,
) -> tuple[Training, int]:
    """The losses, and how many entries of base weights changed; `deltas` are trained in place."""
    digests = opened.model.weight_digests()
    with progress.task("training", plan.steps, "steps") as advance:
        done = 0

        def on_step(step: int, _losses: Mapping[str, float]) -> None:
            nonlocal done
            advance(step - done)
            done = step

        losses = train(opened.model, deltas, plan, work, resume, SAVE_STEPS, on_step, **more)
    now = opened.model.weight_digests()
    changed = sum(size for name, (size, digest) in now.items() if digests[name][1] != digest)
    return losses, changed
