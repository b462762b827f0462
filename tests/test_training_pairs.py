"""Training pairs: every format, and rows that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snt import corpora
from snt.errors import RequestError

USER, REPLY = {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("row", "format_name", "pair"),
    [
        ({"messages": [USER, REPLY]}, "messages", ("p", "r")),
        (
            {"messages": [{"role": "user", "content": "x"}, REPLY, USER, REPLY, USER]},
            "messages",
            ("p", "r"),
        ),
        ({"prompt": "p", "completion": "r", "x": 1}, "prompt/completion", ("p", "r")),
        ({"prompt": "p", "response": "r"}, "prompt/response", ("p", "r")),
        ({"instruction": "p", "input": "", "output": "r"}, "alpaca", ("p", "r")),
        ({"instruction": "p", "input": "q", "output": "r"}, "alpaca", ("p\n\nq", "r")),
        ({"question": "p", "answer": "r\n#### 4"}, "gsm8k", ("p", "r\n#### 4")),
    ],
)
def test_pair_formats(
    tmp_path: Path, row: dict[str, Any], format_name: str, pair: tuple[str, str]
) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    found = corpora.load_pairs(str(tmp_path / "d.jsonl"))
    assert (found.pairs, found.system) == ((pair,), None)
    described = {"name": "d.jsonl", "format": format_name, "rows": 1, "left_out": 0}
    assert found.describe() == {**described, "sha256": found.sha256}


def test_system_message_and_blank_responses(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    rows = [
        {"messages": [SYSTEM, USER, REPLY]},
        {"messages": [SYSTEM, USER, {**REPLY, "content": " "}]},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = corpora.load_pairs(str(file))
    assert (found.system, found.pairs, found.left_out) == ("s", (("p", "r"),), 1)
    file.write_text(json.dumps({"messages": [USER, REPLY]}))
    assert corpora.load_pairs(str(file)).sha256 != found.sha256


def test_built_in_pairs() -> None:
    pairs = corpora.load_pairs("refusals/tune")
    assert pairs.name == "refusals/tune" and len(pairs.pairs) == len(pairs.first(None).pairs)
    assert pairs.pairs[0] == tuple(
        corpora.load("refusals").rows[0][c] for c in ("prompt", "response")
    )
    with pytest.raises(RequestError, match="built-in pairs: refusals"):
        corpora.load_pairs("harmful/tune")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "0 rows"),
        ([{"text": "a", "goal": "b"}], "columns text, goal .*messages.*completion.*alpaca.*gsm8k"),
        ([{"prompt": "p", "response": "r"}, {"prompt": "p"}], "row 2: 'response'"),
        ([{"prompt": " ", "response": "r"}], "row 1: 'prompt'"),
        ([{"prompt": "p", "response": ""}], "every response is blank"),
        ([{"instruction": "p", "input": 3, "output": "r"}], "'input'"),
        ([{"messages": "hi"}], "no list of role"),
        ([{"messages": [SYSTEM, USER]}], "no user message with an assistant"),
        ([{"messages": [SYSTEM, USER, REPLY]}, {"messages": [USER, REPLY]}], "rows 1 and 2"),
    ],
)
def test_pairs_that_cannot_be_read(tmp_path: Path, rows: list[Any], words: str) -> None:
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(RequestError, match=words):
        corpora.load_pairs(str(tmp_path / "d.jsonl"))


def test_pairs_take_no_column(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "response": "r"}')
    with pytest.raises(RequestError, match="take no column"):
        corpora.load_pairs(f"{tmp_path / 'd.jsonl'}:prompt")
