"""A corpus through an open model into scores: stoppable, and in shards that merge exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt import __version__
from snt.anatomy import KINDS
from snt.corpora import Corpus
from snt.errors import MismatchError, RequestError
from snt.importance.positions import Positions
from snt.objective import right_padded
from snt.opening import OpenModel
from snt.processes import (
    World,
    dealt,
    each,
    merged_scores,
    own_files,
    remove_tree,
    sharers,
    wait_for_all,
)
from snt.progress import Progress
from snt.resuming import unfinished_directory
from snt.scores_files import ScoresFile, scores_path
from snt.scores_merging import NamedScores, merged
from snt.scoring import common_beginning, detect_scores, length_groups
from snt.tally import Tally, TooManyDropped, check_dropped
from snt.unfinished import Checkpoint, plan_digest


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, counted from 1.

    Whole batches are dealt out in turn: the same prompt beside other prompts could have other last
    bits.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/3`. Raises RequestError."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, of = (int(part) for part in match.groups()) if match else (0, 0)
        if not 1 <= number <= of:
            raise RequestError(f"--shard {text!r} is no shard; write 1/3, 2/3 and 3/3")
        return cls(number, of)


HALVES = (Shard(1, 2), Shard(2, 2))


@dataclass(frozen=True)
class ScoredCorpus:
    """Scores of one corpus, or of its shard: `prompts` were run, and of the time the model's own
    forward passes took `forward_seconds`."""

    file: ScoresFile
    prompts: int
    forward_seconds: float


@dataclass(frozen=True)
class ScoredSide:
    """A corpus of a detection, whole or in parts, and where its scores file belongs."""

    path: Path
    texts: Corpus
    parts: tuple[ScoredCorpus, ...]

    @property
    def whole(self) -> NamedScores:
        """The scores of all parts, to the bit what one run over all prompts gives."""
        files = [NamedScores(self.path.name, part.file) for part in self.parts]
        return files[0] if len(files) == 1 else merged(files)


def score_sides(
    opened: OpenModel,
    texts: Mapping[str, Corpus],
    kinds: Sequence[str],
    made: Mapping[str, Any],
    output: Path,
    progress: Progress,
    *,
    resume: bool = False,
    shards: Sequence[Shard | None] = (None,),
) -> list[ScoredSide]:
    """Score the corpora of a detection by role, each in the parts asked for. See `score_corpus`."""
    work = unfinished_directory(output)
    if not resume:
        remove_tree(work)
        wait_for_all()
    found = []
    for role, one in texts.items():
        parts = tuple(
            score_corpus(opened, role, one, kinds, made, work, progress, resume=resume, shard=part)
            for part in shards
        )
        found.append(ScoredSide(scores_path(output, against=role == "against"), one, parts))
    return found


def score_corpus(
    opened: OpenModel,
    role: str,
    texts: Corpus,
    kinds: Sequence[str],
    made: Mapping[str, Any],
    work: Path,
    progress: Progress,
    *,
    resume: bool = False,
    shard: Shard | None = None,
) -> ScoredCorpus:
    """Score `texts`; what is found is kept in `work` whenever the work stops before its end.

    `role` is "corpus" or "against"; `made` goes into the metadata beside what the model says of
    itself (importance, positions, seed). Raises RequestError for prompts that do not fit the model
    and for a shard without batches, MismatchError for a resume with other settings, TooManyDropped
    when more than 1% of the prompts have importances that are not finite.
    """
    prompts = [opened.chat.prompt_ids(text) for text in texts.texts]
    groups = length_groups(prompts)
    every = [right_padded([prompts[i] for i in group], opened.chat.pad_id) for group in groups]
    plan = plan_digest(every)
    positions = Positions.parse(made["positions"])
    part = slice(None) if shard is None else slice(shard.number - 1, None, shard.of)
    batches, groups = every[part], groups[part]
    if not batches:
        raise RequestError(
            f"{texts.name} makes {len(every)} batch{'es' * (len(every) > 1)} of prompts, and "
            f"{shard.of if shard else 1} parts (halves or shards) are asked for: give more "
            f"prompts, or at most {len(every)} shards"
        )
    among = sharers(opened.model)
    mine, my_groups = dealt(batches, among), dealt(groups, among)
    checkpoint = Checkpoint(
        work / _checkpoint_name(role, shard, among),
        opened.model.anatomy,
        _settings(opened, texts, kinds, made, plan, shard, among),
        [len(group) for group in my_groups],
    )
    if resume:
        _check_same_processes(checkpoint.path, role, shard)
    begin = checkpoint.resume() if resume else checkpoint.latest
    total = sum(map(len, my_groups))

    def keep(tally: Tally) -> None:
        with own_files() if among.size > 1 else nullcontext():
            checkpoint.on_batch(tally)

    layers = opened.model.anatomy.layers
    title = f"importance, {texts.name}" + (f", 1 of {among.size}" if among.size > 1 else "")
    with progress.task(title, total, "prompts") as advance:
        advance(sum(map(len, my_groups[: begin.batches])) + total * len(begin.layers) / layers)
        try:
            found = detect_scores(
                opened.model,
                mine,
                kinds,
                lambda seen: advance(seen / layers),
                begin=begin,
                on_batch=keep,
                rows=len(prompts),
                importance=made["importance"],
                positions=positions,
                # Of the whole corpus, so that every shard of it is measured alike.
                beginning=common_beginning(every, made["importance"], positions),
                say=progress.say,
            )
        except TooManyDropped:
            raise
        except BaseException:
            _save(checkpoint, among)
            raise
    _save(checkpoint, among)
    lost = [my_groups[batch][row] + 1 for batch, row in found.dropped]
    dropped = sorted(number for numbers in each(lost, among) for number in numbers)
    check_dropped(len(dropped), len(prompts), opened.describe()["dtype"])
    scores = merged_scores(found.scores, _sizes(opened, kinds), among)
    if dropped:
        progress.say(
            f"{texts.name}: {len(dropped)} of {len(prompts)} prompts dropped, for a layer "
            f"overflows on them: number {', '.join(map(str, dropped))}"
        )
    division = shard and {"number": shard.number, "of": shard.of, "plan": plan}
    provenance = {
        **opened.describe(),
        **made,
        **({"shard": division} if division else {}),
        "snt": __version__,
        "corpora": {role: texts.describe()},
        "prompts_dropped": len(dropped),
    }
    file = ScoresFile(opened.model.anatomy, scores, provenance)
    return ScoredCorpus(file, sum(map(len, groups)), found.forward_seconds)


def _checkpoint_name(role: str, shard: Shard | None, among: World) -> str:
    """Shards that one process scores in turn keep apart, and processes that share the batches."""
    part = f".{shard.number}-{shard.of}" if shard else ""
    turn = f".process-{among.rank + 1}-{among.size}" if among.size > 1 else ""
    return f"{role}{part}{turn}.scores.safetensors"


def _check_same_processes(path: Path, role: str, shard: Shard | None) -> None:
    """Raise MismatchError where a run in another number of processes left its checkpoints."""
    alone = _checkpoint_name(role, shard, World()).removesuffix(".scores.safetensors")
    left = list(path.parent.glob(f"{alone}.process-*.scores.safetensors"))
    left += path.parent.glob(f"{alone}.scores.safetensors")

    def processes(name: str) -> str:
        return name.rpartition("process-")[2].partition("-")[2] if "process-" in name else ""

    if left and not any(processes(one.name) == processes(path.name) for one in left):
        raise MismatchError(
            f"the detection in {path.parent} was begun in another number of processes "
            f"({left[0].name}); give the same --processes, or leave --resume out to begin again"
        )


def _save(checkpoint: Checkpoint, among: World) -> None:
    with own_files() if among.size > 1 else nullcontext():
        checkpoint.save()


def _sizes(opened: OpenModel, kinds: Sequence[str]) -> dict[tuple[int, str], int]:
    anatomy = opened.model.anatomy
    return {
        (layer, kind): anatomy.size(kind)
        for layer in range(anatomy.layers)
        for kind in KINDS
        if kind in kinds
    }


def _settings(
    opened: OpenModel,
    texts: Corpus,
    kinds: Sequence[str],
    made: Mapping[str, Any],
    plan: str,
    shard: Shard | None,
    among: World,
) -> dict[str, Any]:
    """Everything that decides the scores, flat, for comparison with an earlier run's."""
    described = opened.describe()
    return {
        **{key: described[key] for key in ("backend", "dtype", "template", "system_prompt")},
        "model": described["model"]["id"],
        "weights": described["fingerprint"],
        "device": opened.model.device.type,
        "corpus": texts.name,
        "texts": texts.sha256,
        "kinds": ",".join(kind for kind in KINDS if kind in kinds),
        "importance": made["importance"],
        "positions": made["positions"],
        "batches": plan,
        "shard": None if shard is None else f"{shard.number}/{shard.of}",
        **({"process": f"{among.rank + 1}/{among.size}"} if among.size > 1 else {}),
        "snt": __version__,
    }
