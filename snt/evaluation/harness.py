"""Capability tasks of lm-evaluation-harness on a model as it stands: patched, or deactivated.

The figures are the harness's own (`HFLM`, `simple_evaluate`); what snt adds is the interval, the
outcome of every document for paired differences, and a seeded sample in place of the first rows.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt.backend import transformers_model
from snt.corpus_files import hub_closed
from snt.errors import FormatError, MissingFileError, RequestError, UnavailableError, unknown_name
from snt.evaluation.guest_libraries import guest
from snt.evaluation.task_results import TaskResults, task_results
from snt.module_modes import modes_kept
from snt.opening import OpenModel
from snt.progress import Progress

# lm-eval puts its whole vocabulary's logits beside every token of a batch.
BATCH = 8
_YAML = (".yaml", ".yml")
_GROUP = re.compile(r"^group\s*:", re.MULTILINE)


@dataclass(frozen=True)
class TaskSettings:
    """Tasks of the harness: names (mmlu, arc_easy, gsm8k), YAML files, or folders of them.

    `few_shot` None leaves each task's own number; `limit` documents a task are drawn with `seed`;
    `chat_template` asks through the model's template.
    """

    names: tuple[str, ...]
    few_shot: int | None = None
    limit: int | None = None
    chat_template: bool = False
    batch_size: int = BATCH
    seed: int = 0

    def check(self) -> None:
        """Raises UnavailableError without lm-eval, MissingFileError for a YAML file or folder that
        is not there, UnknownNameError for a name, RequestError for numbers out of range."""
        if not self.names:
            raise RequestError("no task was given; give names or YAML files with --tasks")
        if self.few_shot is not None and self.few_shot < 0:
            raise RequestError(f"--num-fewshot {self.few_shot}; give 0 or more examples")
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--task-limit {self.limit}; give at least 1 document")
        if self.batch_size < 1:
            raise RequestError(f"a batch of {self.batch_size} documents; give at least 1")
        if importlib.util.find_spec("lm_eval") is None:
            raise UnavailableError(
                "tasks need lm-evaluation-harness, which is not installed; run "
                "`pip install 'snt[harness]'`"
            )
        self.resolved()

    def resolved(self) -> tuple[list[str], Any]:
        """The tasks as the harness takes them, and its TaskManager that knows them."""
        with guest("lm_eval"):
            manager = _manager(tuple(sorted(self.folders())), any(map(_by_name, self.names)))
            return [spec for name in self.names for spec in _specs(name, manager)], manager

    def folders(self) -> set[str]:
        """Folders that the harness must look into. Raises MissingFileError."""
        found = set()
        for name in self.names:
            path = Path(name).expanduser()
            if _by_name(name):
                continue
            if not path.exists():
                raise MissingFileError(f"task {name} does not exist; give a YAML file or a folder")
            if path.is_dir():
                found.add(str(path))
            elif _GROUP.search(path.read_text(encoding="utf-8", errors="replace")):
                # A group's tasks are the files beside it.
                found.add(str(path.parent))
        return found


def run_tasks(opened: OpenModel, settings: TaskSettings, progress: Progress) -> TaskResults:
    """Run the tasks on the model as it stands, hooks and all.

    Raises RequestError for a backend without a transformers model, a dataset that cannot be had, or
    a task that runs code; the errors of `TaskSettings.check`.
    """
    settings.check()
    specs, manager = settings.resolved()
    model = transformers_model(opened.model, opened.backend, "lm-evaluation-harness")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with guest("lm_eval", "datasets"), hub_closed(opened.offline), _no_inventory():
        names, tasks = _load(specs, manager)
        samples = draw_documents(tasks, settings)
        count = sum(map(len, samples.values()))
        progress.say(f"lm-evaluation-harness: {', '.join(names)} ({count} documents)")
        # A copy: the harness gives a tokenizer a padding token where it has none.
        tokenizer = copy.deepcopy(opened.chat.tokenizer)
        # It puts every module into evaluation; a backend may hold some otherwise for a reason.
        with modes_kept(model):
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
        found = simple_evaluate(
            wrapped,
            tasks=specs,
            num_fewshot=settings.few_shot,
            samples=samples,
            system_instruction=opened.chat.system,
            apply_chat_template=settings.chat_template,
            task_manager=manager,
        )
    return task_results(found, names, _settings_json(settings))


@contextmanager
def _no_inventory() -> Iterator[None]:
    """Keep the harness from taking stock of the machine: it asks git, which complains outside a
    repository, and lists hardware that no report of snt tells."""
    import lm_eval.evaluator as evaluator

    before = evaluator.get_git_commit_hash, evaluator.add_env_info
    try:
        evaluator.get_git_commit_hash = lambda: None
        evaluator.add_env_info = lambda _: None
        yield
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = before


def _manager(folders: tuple[str, ...], defaults: bool) -> Any:
    # The harness reads 14,000 YAML files to know its own tasks: seconds, so once a process. A
    # user's own are read each time, for they change.
    return _own_manager(folders) if defaults else _new_manager(folders, False)


@functools.lru_cache(maxsize=4)
def _own_manager(folders: tuple[str, ...]) -> Any:
    return _new_manager(folders, True)


def _new_manager(folders: tuple[str, ...], defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=list(folders) or None, include_defaults=defaults)
    except Exception as error:  # YAML of any kind, read by the harness in its own way
        raise FormatError(
            f"lm-evaluation-harness cannot read the tasks in {', '.join(folders)}: {error}"
        ) from error


def _by_name(name: str) -> bool:
    """Whether it is a name that the harness knows, and not the path of a file or a folder."""
    return not name.endswith(_YAML) and os.sep not in name and not name.startswith((".", "~"))


def _specs(given: str, manager: Any) -> list[str]:
    if _by_name(given):
        if given not in manager.all_tasks:
            hint = f"A folder is given by its path, as in .{os.sep}{given}."
            raise unknown_name("task", given, manager.all_tasks, hint)
        return [given]
    path = Path(given).expanduser().resolve()
    places = {
        name: entry.yaml_path.resolve()
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None
    }
    if path.is_file():
        # A task can be had by its file; a group only by its name.
        return [name for name in manager.all_groups if places.get(name) == path] or [str(path)]
    held = [name for name, place in places.items() if path in place.parents]
    if not held:
        raise FormatError(f"{given} holds no task; a task file says `task: NAME` and a dataset")
    # A group brings its tasks along, and a tag is another name of tasks that are here.
    return [name for name in held if name in manager.all_groups] or [
        name for name in held if name in manager.all_subtasks
    ]


def _load(specs: Sequence[str], manager: Any) -> tuple[list[str], dict[str, Any]]:
    """The names that the results stand under, and every single task by its name."""
    names: list[str] = []
    tasks: dict[str, Any] = {}
    for spec in specs:
        try:
            loaded = manager.load([spec])
        except Exception as error:  # datasets, Hub, YAML and task code fail in ways of their own
            said = " ".join(str(error).split())[:300].rstrip(".")
            raise RequestError(
                f"task {spec} could not be loaded: {type(error).__name__}: {said}. Check its file "
                "and the dataset that it names; offline, that must be in the Hugging Face cache"
            ) from error
        groups = list(loaded.get("groups") or {})
        names += groups[:1] or list(loaded["tasks"])
        tasks |= loaded["tasks"]
    return names, tasks


def draw_documents(tasks: Mapping[str, Any], settings: TaskSettings) -> dict[str, list[int]]:
    """Numbers of the documents of every task, drawn with the seed and the task's name, sorted.

    Raises RequestError for a task without documents and for one that runs code.
    """
    found = {}
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise RequestError(f"task {name} runs code that the model wrote; snt does not run it")
        count = len(task.eval_docs)
        if not count:
            raise RequestError(f"task {name} has 0 documents; check its dataset and its filters")
        kept = count if settings.limit is None else min(settings.limit, count)
        found[name] = sorted(random.Random(f"{settings.seed} {name}").sample(range(count), kept))
    return found


def _settings_json(settings: TaskSettings) -> dict[str, Any]:
    return {
        "limit": settings.limit,
        "seed": settings.seed,
        "apply_chat_template": settings.chat_template,
        "batch_size": settings.batch_size,
    }
