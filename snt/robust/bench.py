"""The jobs of the comparison: one model in memory at a time, trained, measured, let go."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from snt import corpora
from snt.atomic import sha256_of, whole_directory
from snt.chat import Chat
from snt.deltas import Deltas
from snt.digests import key_of
from snt.evaluation.completions import Completion
from snt.evaluation.measurement import made_by_of, measure
from snt.masks import load_mask
from snt.memory import release
from snt.opening import OpenModel, check_patch, open_model
from snt.patch_algebra import scaled
from snt.patches import Patch, load_patch
from snt.progress import Progress
from snt.rehearsal_steps import Material, material_of
from snt.robust.arms import BEFORE, SAFETY, Arm, Job, arms_of
from snt.robust.held import Held
from snt.robust.identity import Identity
from snt.robust.masks import ArmMasks
from snt.robust.results import TASK_CORRECT, StageResult
from snt.robust.settings import RobustSettings
from snt.robust.stages import Stages
from snt.robust.task_data import Task
from snt.robust.task_scoring import TaskScore, score_task
from snt.robust.task_training import (
    FineTune,
    as_measured,
    fine_tune,
    merge_deltas,
    whole_model,
)
from snt.tuning import RETAIN_TEXT, tune


@dataclass(frozen=True)
class Bench:
    """What all jobs share."""

    identity: Identity
    settings: RobustSettings
    task: Task
    masks: ArmMasks
    stages: Stages
    save_models: bool
    command: str
    progress: Progress
    held: Held = field(default_factory=Held)

    def run(self, job: Job, arm: Arm | None) -> tuple[StageResult, bool]:
        """The result of a job, and whether it was there already."""
        key = self.key(job, arm)
        found = self.stages.result(job.name, key)
        if found is not None and (job.stage != SAFETY or self._has_patch(job)):
            return found, True
        if arm is None or arm.fine_tuned is not None:
            self.held.drop()
        if job.stage == BEFORE:
            result, replies = self._before()
        elif arm is None:
            result, replies = self._after_safety(job, key)
        else:
            result, replies = self._after_task(job, arm, key)
        self.stages.keep(job.name, key, result, replies)
        release()
        return result, False

    def patch(self, tuned: str, seed: int) -> Path:
        """The directory of an arm's patch."""
        return self.stages.directory / "patches" / f"{tuned}-{seed}"

    def key(self, job: Job, arm: Arm | None) -> str:
        """A digest of all that a job's result depends on."""
        if job.stage == BEFORE:
            return key_of("measured", self._measured_by())
        if arm is None:
            return key_of(
                "safety", self._patch_key(str(job.arm), job.seed or 0), self._measured_by()
            )
        settings = self.settings
        learnt = None if arm.tuned is None else self._patch_key(arm.tuned, job.seed or 0)
        trained = [self.task.describe(), asdict(settings.task), settings.task.rate(settings.via)]
        made = [settings.via, arm.protected, job.seed, learnt, *trained]
        own = {
            "rehearse": [settings.rehearse_every, settings.rehearse_rate],
            "last": [settings.last_scale],
        }.get(arm.way, [])
        return key_of(arm.way if own else "task", [*made, *own], self._measured_by())

    def _measured_by(self) -> list[Any]:
        settings = self.settings
        chosen = settings.evaluate.chosen(self.identity.choice.offline)
        return [
            self.identity.description,
            settings.evaluate.judges,
            settings.evaluate.generation(),
            {metric: corpus.sha256 for metric, corpus in chosen.items()},
            {key: self.task.describe()[key] for key in ("evaluation", "system_prompt")},
            settings.task_tokens,
            settings.task.longest,
        ]

    def _patch_key(self, tuned: str, seed: int) -> str:
        settings, choice = self.settings, self.identity.choice
        pairs = corpora.load_pairs(settings.data, offline=choice.offline)
        # Plain texts are kept as well, those of the default.
        names = (*settings.retain, *RETAIN_TEXT)
        kept = [corpora.load(name, offline=choice.offline).sha256 for name in names]
        schedule = replace(settings.tuning, seed=seed).as_json()
        mask = sha256_of(self.masks.path(tuned, seed))
        made = [mask, pairs.sha256, kept, schedule, settings.positions]
        return key_of("patch", self.identity.description, *made)

    def _has_patch(self, job: Job) -> bool:
        tuned, seed = str(job.arm), job.seed or 0
        file = self.patch(tuned, seed) / "patch.safetensors"
        return self.stages.done(f"patch-{tuned}-{seed}", self._patch_key(tuned, seed), file)

    def _before(self) -> tuple[StageResult, list[Completion]]:
        started = time.perf_counter()
        opened = open_model(self._choice(self.identity.measured_dtype), progress=self.progress)
        return self._measure(opened, None, {}, started)

    def _after_safety(self, job: Job, key: str) -> tuple[StageResult, list[Completion]]:
        started = time.perf_counter()
        tuned, seed = str(job.arm), job.seed or 0
        training = self._tune(tuned, seed)
        opened = open_model(self._choice(self.identity.measured_dtype), progress=self.progress)
        patch = self._patch_for(opened, tuned, seed)
        on_device = {
            at: (indices.to(opened.model.device), delta.to(opened.model.device))
            for at, (indices, delta) in patch.slices.items()
        }
        with Deltas(on_device).attached(opened.model):
            return self._measure(opened, key, training, started)

    def _after_task(self, job: Job, arm: Arm, key: str) -> tuple[StageResult, list[Completion]]:
        started = time.perf_counter()
        seed = job.seed or 0
        shared = self.held.restored(seed) if arm.fine_tuned is None else None
        opened, trained = shared or self._fine_tuned(arm, seed)
        if arm.way == "last":
            patch = self._patch_for(opened, str(arm.tuned), seed)
            merge_deltas(opened.model, scaled(patch.slices, self.settings.last_scale))
        if self.save_models:
            self._save_model(opened, job)
        as_measured(whole_model(opened.model, opened.backend), self.identity.measured_dtype)
        return self._measure(opened, key, trained.as_json(), started)

    def _fine_tuned(self, arm: Arm, seed: int) -> tuple[OpenModel, FineTune]:
        """The model of an arm after the task, in float32."""
        settings = self.settings
        protected, rehearsed = None, None
        opened = open_model(self._choice("float32"), progress=self.progress)
        whole_model(opened.model, opened.backend)  # or it is refused, before anything is done to it
        if arm.fine_tuned is not None:
            merge_deltas(opened.model, self._patch_for(opened, arm.fine_tuned, seed).slices)
            if arm.protected:
                protected = load_mask(self.masks.path(arm.fine_tuned, seed))
            if arm.way == "rehearse":
                rehearsed = self._material(opened, seed)
        steps = settings.task.steps(len(self.task.train))
        with self.progress.task(f"task, {arm.name}", steps, "steps") as advance:
            trained = fine_tune(
                opened.model,
                opened.backend,
                self._task_chat(opened),
                self.task.train,
                settings.task,
                settings.via,
                seed,
                protected,
                rehearsed,
                half=self.identity.measured_dtype != "float32",
                on_step=lambda: advance(1),
            )
        release()
        arms = arms_of(settings.arms, settings.protect)
        if arm.fine_tuned is None and any(one.way == "last" for one in arms):
            self.held.keep(opened, trained, seed)
        return opened, trained

    def _tune(self, tuned: str, seed: int) -> Mapping[str, Any]:
        """SN-Tune of one mask; a patch that is there is not tuned again."""
        name, key = f"patch-{tuned}-{seed}", self._patch_key(tuned, seed)
        output = self.patch(tuned, seed)
        report = output / "report.json"
        if not self.stages.done(name, key, report):
            shutil.rmtree(output, ignore_errors=True)
            settings, choice = self.settings, self.identity.choice
            self.progress.say(f"safety tuning of {tuned}, seed {seed}")
            tune(
                choice.ref,
                mask=self.masks.path(tuned, seed),
                data=settings.data,
                retain=settings.retain,
                output=output,
                schedule=replace(settings.tuning, seed=seed),
                positions=settings.positions,
                evaluate=None,
                backend=choice.backend,
                dtype=choice.dtype,
                system=choice.system,
                offline=choice.offline,
                command=self.command,
                progress=self.progress,
            )
            self.stages.note(name, key)
            release()
        said = json.loads(report.read_text(encoding="utf-8"))
        told = ("steps", "masked", "changed", "max_abs_delta", "outside_changed", "seconds")
        return {name: said[name] for name in told if name in said}

    def _material(self, opened: OpenModel, seed: int) -> Material:
        settings, offline = self.settings, self.identity.choice.offline
        return material_of(
            opened.model,
            opened.chat,
            corpora.load_pairs(settings.data, offline=offline).pairs,
            [corpora.load(name, offline=offline) for name in settings.retain],
            replace(settings.tuning, learning_rate=settings.rehearse_rate, seed=seed),
            settings.rehearse_every,
            settings.positions,
            self.progress,
        )

    def _patch_for(self, opened: OpenModel, tuned: str, seed: int) -> Patch:
        patch = load_patch(self.patch(tuned, seed) / "patch.safetensors")
        check_patch(patch, opened)
        return patch

    def _measure(
        self, opened: OpenModel, key: str | None, training: Mapping[str, Any], started: float
    ) -> tuple[StageResult, list[Completion]]:
        """Suites and task of a model; `key` says in the saved replies which trained one it was."""
        settings = self.settings
        shown = replace(opened, patch_digest=key)
        measured = measure(shown, settings.evaluate, self.progress)
        total = len(self.task.evaluation) if self.task.exact else 0
        with self.progress.task("task, held out", total, "prompts") as advance:
            score = score_task(
                opened.model,
                self._task_chat(opened),
                self.task,
                settings.task_tokens,
                settings.task.longest,
                settings.evaluate.batch_size,
                advance,
            )
        outcomes = {metric: tuple(measured.outcomes(metric)) for metric in measured.rates}
        if score.correct:
            outcomes[TASK_CORRECT] = score.correct
        seconds = time.perf_counter() - started
        result = StageResult(outcomes, measured.perplexity, score.responses, training, seconds)
        return result, [*measured.completions, *self._task_replies(shown, score)]

    def _task_replies(self, opened: OpenModel, score: TaskScore) -> list[Completion]:
        made_by = made_by_of(opened, self.settings.evaluate)
        made_by["system_prompt"] = self._task_chat(opened).system
        made_by["settings"] = {
            **made_by["settings"],
            "max_new_tokens": self.settings.task_tokens,
        }
        return [
            Completion(
                item.prompt,
                reply,
                TASK_CORRECT,
                number,
                made_by,
                extra={"expected": item.answer, "correct": correct},
            )
            for number, (item, reply, correct) in enumerate(
                zip(self.task.evaluation, score.replies, score.correct, strict=False)
            )
        ]

    def _task_chat(self, opened: OpenModel) -> Chat:
        if self.task.system is None:
            return opened.chat
        return replace(opened.chat, system=self.task.system)

    def _choice(self, dtype: str) -> Any:
        return replace(self.identity.choice, dtype=dtype)

    def _save_model(self, opened: OpenModel, job: Job) -> None:
        """The fine-tuned model as a directory that plain transformers loads, in float32."""
        model: Any = whole_model(opened.model, opened.backend)
        with whole_directory(self.stages.directory / "models" / job.name) as directory:
            model.save_pretrained(directory)
            opened.model.tokenizer.save_pretrained(directory)
