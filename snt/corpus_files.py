"""Rows of a corpus: from the user's files, by suffix, and from datasets of the Hub."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snt import hub_models
from snt.errors import FormatError, MissingFileError, RequestError, UnavailableError
from snt.progress import Progress, Silence

Row = Mapping[str, Any]
HUB_FORM = "hf:ID[:config][:split][:column]; leave a part blank to skip it, as in hf:ID::train"
_HUB_SECONDS = 15.0
_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]*\w)?", re.ASCII)
# What stands in the place of the configuration and can only be a split.
_SPLIT = re.compile(r"(train|test|validation|valid|dev|eval|all)(\[.*\])?")


def read_rows(path: Path) -> tuple[Row, ...]:
    """Rows of a .jsonl, .json (a list of objects), .csv, .parquet or .txt (a text a line) file.

    Raises MissingFileError, FormatError (file, row and remedy), RequestError for another suffix
    and UnavailableError for a parquet file without pyarrow.
    """
    if path.is_dir():
        raise MissingFileError(f"corpus {path} is a directory; name the file in it")
    if not path.is_file():
        raise MissingFileError(f"corpus file {path} does not exist; give a file or a built-in name")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        *most, last = _READERS
        raise RequestError(f"{path}: cannot read {path.suffix!r}; use {', '.join(most)} or {last}")
    try:
        return tuple(reader(path))
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text: {error}; convert it first") from error
    except (csv.Error, RecursionError) as error:
        raise FormatError(f"{path} is no sound {path.suffix[1:]} file: {error}; mend it") from error
    except PermissionError as error:
        raise MissingFileError(f"{path} cannot be read; check its permissions") from error


@dataclass(frozen=True)
class HubReference:
    """`hf:ID[:config][:split][:column]` taken apart; `id` may be a local dataset directory."""

    id: str
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @staticmethod
    def parse(reference: str) -> HubReference:
        """Take `reference` apart. Raises RequestError for what has not this form.

        A usual split name in the place of the configuration is taken for the split.
        """
        # Colons within the brackets of train[:100] separate nothing.
        name, *parts = re.split(r":(?![^\[\]]*\])", reference.removeprefix("hf:"))
        if parts and _SPLIT.fullmatch(parts[0]):
            parts.insert(0, "")
        if len(parts) > 3 or not (_local(name) or _ID.fullmatch(name)):
            raise RequestError(f"{reference!r} names no dataset; the form is {HUB_FORM}")
        return HubReference(name, *(part or None for part in parts))

    @property
    def name(self) -> str:
        """The reference again, with a directory's base name in the place of its path."""
        label = Path(os.path.abspath(self.id)).name if _local(self.id) else self.id
        parts = [label, self.config or "", self.split or "", self.column or ""]
        return "hf:" + ":".join(parts).rstrip(":")


def read_hub(
    reference: HubReference, *, offline: bool = False, progress: Progress | None = None
) -> tuple[Row, ...]:
    """Rows of a dataset of the Hub, or of the copy in the cache where the Hub may not or cannot
    be asked. Without a split the only one is read, else `train`.

    Raises RequestError (no such dataset, configuration or split; gated; not to be had),
    MissingFileError for a directory that is not there and UnavailableError without `datasets`.
    """
    progress = progress or Silence()
    if _local(reference.id):
        if not Path(reference.id).expanduser().is_dir():
            raise MissingFileError(f"dataset directory {reference.id} does not exist; check it")
        return _load(reference, str(Path(reference.id).expanduser()), None)
    why = "the Hub may not be asked" if offline or hub_models.forbidden() else None
    if why is None:
        progress.say(f"fetching the dataset {reference.id} from {hub_models.endpoint()}")
        why = _unanswered(reference.id)
        if why is not None:
            progress.say(f"{why}; a copy in the Hugging Face cache is used")
    # This prefix keeps a folder of the same name here from being read instead.
    return _load(reference, f"hf://datasets/{reference.id}", why)


def _unanswered(hub_id: str) -> str | None:
    """None when the Hub has the dataset, else why it cannot be reached.

    `datasets` alone would try for half a minute, with a warning each time. Raises RequestError
    when the Hub answers that it does not have it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi(endpoint=hub_models.endpoint()).dataset_info(hub_id, timeout=_HUB_SECONDS)
    except GatedRepoError as error:
        raise RequestError(
            f"dataset {hub_id} is gated: accept its terms at {hub_models.endpoint()}/datasets/"
            f"{hub_id} with your account, then run `hf auth login`, or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"{hub_models.endpoint()} has no dataset {hub_id}, or it is private: check the "
            "spelling (owner/name), or run `hf auth login` with an account that may read it"
        ) from error
    except Exception as error:  # HTTP, TLS, proxy and JSON faults share no base
        return f"{hub_models.endpoint()} did not answer ({type(error).__name__})"
    return None


def _load(reference: HubReference, path: str, why_cached: str | None) -> tuple[Row, ...]:
    try:
        import datasets
        from datasets.exceptions import DatasetNotFoundError
    except ImportError as error:
        raise UnavailableError(
            f"reading {reference.name} needs the datasets package; run `pip install datasets`"
        ) from error
    hub: Any = datasets  # its public names are not marked as re-exported
    try:
        with _quiet(), hub_closed(why_cached is not None):
            found = hub.load_dataset(path, name=reference.config, split=reference.split)
            if isinstance(found, dict):
                found = found[_only_split(reference, list(found))]
            rows: list[Row] = found.to_list()
    except RequestError:
        raise
    except ImportError as error:
        raise UnavailableError(f"dataset {reference.id} needs more to be read: {error}") from error
    except (ConnectionError, FileNotFoundError, DatasetNotFoundError) as error:
        if _local(reference.id):
            raise RequestError(
                f"dataset directory {reference.id} holds no data files that can be read; give one "
                "with .jsonl, .csv, .parquet or .txt files"
            ) from error
        raise RequestError(
            f"dataset {reference.id} could not be had: {why_cached or _said(error)}, and no "
            "copy is in the Hugging Face cache. Check the network, run once without --offline and "
            "HF_HUB_OFFLINE, or give a file"
        ) from error
    except Exception as error:  # what `datasets` raises for bad names and bad data has no base
        raise RequestError(
            f"dataset {reference.id} could not be read: {_said(error)}. The form is {HUB_FORM}"
        ) from error
    return tuple(rows)


def _only_split(reference: HubReference, splits: list[str]) -> str:
    if len(splits) != 1 and "train" not in splits:
        raise RequestError(
            f"dataset {reference.id} has the splits {', '.join(splits)}; name one: {HUB_FORM}"
        )
    return splits[0] if len(splits) == 1 else "train"


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of datasets' own while the block runs."""
    from datasets.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


@contextmanager
def hub_closed(closed: bool) -> Iterator[None]:
    """Keep datasets from asking the Hub while the block runs."""
    import datasets
    from huggingface_hub import constants

    # Both read HF_HUB_OFFLINE once, when they are imported.
    settings: list[Any] = [datasets.config, constants]
    before = [module.HF_HUB_OFFLINE for module in settings]
    try:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = closed or value
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _local(name: str) -> bool:
    return name.startswith((".", "/", "~"))


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300].rstrip(". ") or "no reason given"
    return f"{type(error).__name__}: {text}"


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise FormatError(
                    f"{path}, line {number}: not JSON ({error.msg}); mend it"
                ) from error
            yield _as_object(path, number, row)


def _json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{path}: not JSON, line {error.lineno} ({error.msg}); mend it"
        ) from error
    if not isinstance(rows, list):
        raise FormatError(f"{path}: {type(rows).__name__} at the top; a list of objects is needed")
    for number, row in enumerate(rows, start=1):
        yield _as_object(path, number, row)


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise UnavailableError(
            f"reading {path} needs the pyarrow package; run `pip install pyarrow`"
        ) from error
    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise FormatError(f"{path} is no sound parquet file: {_said(error)}") from error


def _txt(path: Path) -> Iterator[Row]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip():
            yield {"text": line.strip()}


def _as_object(path: Path, number: int, row: Any) -> Row:
    if not isinstance(row, dict):
        raise FormatError(f"{path}, row {number}: {type(row).__name__}, not an object; mend it")
    return row


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
