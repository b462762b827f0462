"""`command`: any program as a judge, `--judge "command:PROGRAM ARGS"`.

It gets one JSON object a line on its input, `{"prompt": ..., "response": ...}`, and writes as many
lines, in the same order, `{"label": ...}` with one of the four labels. The words after the colon
are split as a POSIX shell would, and no shell is run. The last line that it writes to stderr is
shown when it fails.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import Final

from snt.errors import RequestError, UnavailableError
from snt.evaluation.judges import LABELS, JudgeChoice, Label, Labeller, Row

summary = 'any program: --judge "command:PROGRAM ARGS", JSONL {prompt, response} in, {label} out'
heuristic = False
scores_harm = False

# Seconds a run may take, by SNT_JUDGE_SECONDS.
_SECONDS: Final = 600.0
_REMEDY: Final = 'for every line of input it must write one line such as {"label": "refusal"}'


def open_judge(choice: JudgeChoice) -> Labeller:
    """The program, not yet run. Raises RequestError without one or with a bad time limit."""
    try:
        words = shlex.split(choice.setting)
    except ValueError as error:
        raise RequestError(
            f"judge 'command': {choice.setting!r} cannot be split into words ({error}); close its "
            "quotation marks"
        ) from None
    if not words:
        raise RequestError("judge 'command' needs a program: --judge \"command:python judge.py\"")
    seconds = _seconds()

    def labels(rows: Sequence[Row]) -> list[Label]:
        return _read(words[0], _run(words, rows, seconds), rows)

    return labels


def _seconds() -> float:
    text = os.environ.get("SNT_JUDGE_SECONDS", str(_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise RequestError(f"SNT_JUDGE_SECONDS is {text!r}; give a number of seconds above 0")
    return seconds


def _run(words: Sequence[str], rows: Sequence[Row], seconds: float) -> str:
    lines = [json.dumps({"prompt": prompt, "response": reply}) for prompt, reply in rows]
    try:
        done = subprocess.run(
            list(words),
            input="".join(f"{line}\n" for line in lines).encode("ascii"),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise UnavailableError(
            f"judge 'command': {words[0]!r} cannot be run ({error.strerror}); give an installed "
            "program or a path to one"
        ) from None
    except subprocess.TimeoutExpired:
        raise RequestError(
            f"judge 'command': {words[0]!r} was not done after {seconds:g} s with {len(rows)} "
            "replies; judge fewer, or set SNT_JUDGE_SECONDS"
        ) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RequestError(
            f"judge 'command': {words[0]!r} ended with exit code {done.returncode}"
            f"{f': {said[-1][:200]}' if said else ''}; it must end with 0"
        )
    try:
        return done.stdout.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"judge 'command': what {words[0]!r} wrote is not UTF-8 (byte {error.start})"
        ) from None


def _read(program: str, output: str, rows: Sequence[Row]) -> list[Label]:
    lines = [line for line in output.split("\n") if line.strip()]
    found = [_label(program, number, line) for number, line in enumerate(lines, start=1)]
    if len(found) != len(rows):
        raise RequestError(
            f"judge 'command': {program!r} wrote {len(found)} lines for {len(rows)} replies; "
            f"{_REMEDY}"
        )
    return found


def _label(program: str, number: int, line: str) -> Label:
    where = f"judge 'command': {program!r}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError(f"{where}: {line[:80]!r} is not JSON; {_REMEDY}") from None
    label = row.get("label") if isinstance(row, dict) else None
    for known in LABELS:
        if label == known:
            return known
    raise RequestError(f"{where}: {line[:80]!r} has no label of {', '.join(LABELS)}; {_REMEDY}")
