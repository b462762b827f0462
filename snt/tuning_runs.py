"""What an unfinished tuning keeps beside the patch it will become, and whether it may go on.

A run that goes on with other settings would end in a patch that no settings describe, so they are
written down before the first step and compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snt.atomic import write_json
from snt.errors import FormatError, RequestError
from snt.processes import leads, remove_tree
from snt.resuming import check_begun_alike

_FILE = "settings.json"


def logs_directory(output: Path) -> Path:
    """Where loggers write: beside the patch, for it is read while the patch is not there yet."""
    return output.with_name(f"{output.name}.logs")


def begin(work: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Start afresh, or check that a run in `work` was begun with the same settings.

    A run that was killed before its first checkpoint has settings alone, and starts over. Raises
    RequestError when nothing is there to resume, FormatError for a damaged file and MismatchError,
    which names what differs.
    """
    flat = _flat(settings)
    if not resume:
        remove_tree(work)
        if leads():
            work.mkdir(parents=True)
        write_json(work / _FILE, flat)
        return
    if not (work / _FILE).is_file():
        raise RequestError(f"there is no checkpoint in {work} to resume from; leave --resume out")
    try:
        theirs = dict(json.loads((work / _FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"{work / _FILE} is damaged; leave --resume out to begin again"
        ) from error
    mine = json.loads(json.dumps(flat))
    check_begun_alike(f"the tuning in {work} was", theirs, mine)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            found |= _flat(
                {str(number): one for number, one in enumerate(value)}, f"{before}{name}."
            )
        else:
            found[f"{before}{name}"] = value
    return found
