"""`snt push` and `snt pull`: masks, scores, patches and recipes on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

from snt import hub_models
from snt.atomic import sha256_of, whole_directory, whole_file
from snt.errors import RequestError, unknown_name
from snt.hub_repositories import Repository, Snapshot, cached_snapshot, listed_snapshot
from snt.model_refs import repository_of
from snt.progress import Progress, Silence
from snt.shared_card import card
from snt.shared_files import PATCH_FILES, SharedFile, clashing, names_in, shared_file


@dataclass(frozen=True)
class Pushed:
    """What was put on the Hub: `files` are paths in `repository`, `commit` the commit's hash."""

    repository: str
    commit: str
    url: str
    files: tuple[str, ...]
    kinds: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The report of `snt push --json`."""
        return asdict(self)


@dataclass(frozen=True)
class Pulled:
    """What was fetched: name -> kind in `kinds`, and where each lies now in `files`."""

    repository: str
    commit: str
    files: tuple[Path, ...]
    kinds: dict[str, str]
    facts: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The report of `snt pull --json`."""
        return {**asdict(self), "files": [str(path) for path in self.files]}


def push(
    paths: Sequence[str | Path],
    to: str,
    *,
    private: bool = False,
    message: str | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Put masks, scores files, patch directories and recipes into the repository `to`, one commit.

    Everything is read and checked first. The repository, and the branch of `owner/name@branch`, is
    made when there is none, with a card that says what is in it; of a card that is there only our
    table changes. Files that a patch had and has no longer are taken out. Raises RequestError and
    children for what cannot be shared or reached with this token, RunFailure when the Hub fails.
    """
    progress = progress or Silence()
    repository, branch = repository_of(to)
    if hub_models.forbidden():
        raise RequestError(
            "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and snt push needs the Hub; unset it"
        )
    if not paths:
        raise RequestError("nothing to push; give masks, scores files, patch directories, recipes")
    shared = [shared_file(Path(path)) for path in paths]
    names = [one.name for one in shared]
    clash = clashing(names)
    if clash is not None:
        raise RequestError(f"two of the files are named {clash[0]!r}; rename one of them")
    placed = next((one for one in shared if one.place is not None), None)
    if placed is not None:
        raise RequestError(
            f"{placed.name} names a place on this machine, {placed.place!r:.82}; name the file "
            "alone, as it lies beside the recipe"
        )
    files = {at: path for one in shared for at, path in one.files.items()}
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    hub = Repository(repository, branch)
    last, held = hub.made_ready(private)
    written = card(repository, shared, hub.card() if "README.md" in held else None)
    operations: list[Any] = [
        CommitOperationAdd(at, str(path)) for at, path in sorted(files.items())
    ]
    if written is not None:
        operations.append(CommitOperationAdd("README.md", written.encode("utf-8")))
    gone = [f"{one.name}/{at}" for one in shared if one.kind == "patch" for at in PATCH_FILES]
    operations += [CommitOperationDelete(at) for at in gone if at in held and at not in files]
    size = sum(path.stat().st_size for path in files.values())
    progress.say(f"sending {len(files)} files ({size / 1e6:.1f} MB) to {repository}")
    done = hub.commit(operations, message or f"snt push: {', '.join(names)}", last)
    kinds = {one.name: one.kind for one in shared}
    return Pushed(repository, str(done.oid), str(done.commit_url), tuple(sorted(files)), kinds)


def pull(
    source: str,
    names: Sequence[str] = (),
    *,
    output: str | Path = ".",
    force: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch what `source`, `owner/name[@revision]`, holds of snt's files, or `names` of it.

    Each is checked before it lies in `output`; what is not snt's is left, and what is named and is
    not raises. Files there that differ are replaced with `force` alone, and no others are touched.
    `offline` takes what an earlier pull left in the cache. Raises UnknownNameError for a name that
    is not there, RequestError and children for what cannot be had or is not what it says,
    RunFailure when the Hub fails.
    """
    progress = progress or Silence()
    repository, revision = repository_of(source)
    asked = list(dict.fromkeys(name.rstrip("/") for name in names))
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise RequestError(f"{output} is a file; -o takes a directory")
    if offline or hub_models.forbidden():
        snapshot: Snapshot = cached_snapshot(repository, revision)
    else:
        snapshot = listed_snapshot(repository, revision)
    held = names_in(at for at in snapshot.paths if not asked or at.split("/")[0] in asked)
    missing = next((name for name in asked if name not in held), None)
    if missing is not None:
        raise unknown_name(f"file of {repository}", missing, names_in(snapshot.paths))
    wanted = {n: held[n] for n in asked or held if asked or snapshot.is_ours(held[n][0])}
    folder = snapshot.fetch([at for paths in wanted.values() for at in paths])
    with tempfile.TemporaryDirectory() as copies:
        checked = []
        for name, paths in wanted.items():
            # The cache holds links, and more than was asked for.
            for at in paths:
                (Path(copies) / at).parent.mkdir(exist_ok=True)
                copyfile(folder / at, Path(copies) / at)
            try:
                checked.append(shared_file(Path(copies) / name))
            except RequestError as error:
                fault = str(error).replace(f"{copies}/", f"{repository}/").replace(copies, "")
                if asked:
                    raise type(error)(fault) from error
                progress.say(f"left: {fault}")
        if not checked:
            raise RequestError(f"{repository} holds no mask, scores file, patch or recipe of snt")
        for one in checked:
            _check_room(one, output, force)
        for one in checked:
            _place(one, output)
            progress.say(f"{one.name}: {one.kind}, {one.facts}")
    return Pulled(
        repository,
        snapshot.commit,
        tuple(output / one.name for one in checked),
        {one.name: one.kind for one in checked},
        {one.name: one.facts for one in checked},
    )


def _check_room(one: SharedFile, output: Path, force: bool) -> None:
    """Raise RequestError when something else lies where `one` would."""
    place = output / one.name
    if place.exists() and place.is_dir() != (one.kind == "patch"):
        raise RequestError(f"{place} exists and is of another kind; -o takes another place")
    for at, path in one.files.items():
        there = output / at
        if there.is_dir():
            raise RequestError(f"{there} is a directory; -o takes another place")
        if not force and there.exists() and sha256_of(there) != sha256_of(path):
            raise RequestError(
                f"{there} exists and is another file; --force replaces it, -o takes another place"
            )


def _place(one: SharedFile, output: Path) -> None:
    """Copy the files of `one` to their places; others that lie there stay."""
    if one.kind == "patch" and not (output / one.name).exists():
        with whole_directory(output / one.name) as folder:
            for path in one.files.values():
                copyfile(path, folder / path.name)
        return
    for at, path in one.files.items():
        with whole_file(output / at) as temporary:
            copyfile(path, temporary)
