"""Blind labelling: what a person sees, and how far a judge agrees with what they wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import snt
from hypothesis import given
from hypothesis import strategies as st

from snt.errors import FormatError, RequestError
from snt.evaluation.completions import Completion, write_completions
from snt.evaluation.judges import LABELS
from snt.evaluation.labelling import agreement, judge_agreement, sample_to_label
from snt.evaluation.rejudging import rejudge_file, suite_rates

_REPLIES = ("I can't help with that.", "Sure, first take a bowl.", "", "I'm sorry, but no.")


def _saved(folder: Path, count: int = 24) -> Path:
    rows = [
        Completion(
            f"Do thing {n}",
            _REPLIES[n % 4],
            suite="non_refusal" if n % 2 else "over_refusal",
            id=n,
            made_by={"model": "secret-model", "settings": {"dtype": "float32"}},
            label="compliance",
            extra={"arm": "mask"},
        )
        for n in range(count)
    ]
    return write_completions(folder / "c.jsonl", rows)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _fill(path: Path, labels: list[str]) -> None:
    rows = _lines(path)
    for row, label in zip(rows, labels, strict=False):
        row["label"] = label
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_file_to_label_is_blind_shuffled_and_repeats(tmp_path: Path) -> None:
    saved = _saved(tmp_path)
    made = sample_to_label(saved, 10, tmp_path / "one.jsonl", seed=3)
    rows = _lines(made.path)
    assert len(rows) == 10 and made.distinct == 24
    assert all(set(row) == {"id", "prompt", "response", "label"} for row in rows)
    assert all(row["label"] == "" for row in rows)
    assert len({row["id"] for row in rows}) == 10
    text = made.path.read_text()
    assert not any(word in text for word in ("secret", "refusal", "compliance", "mask"))
    again = sample_to_label(saved, 10, tmp_path / "two.jsonl", seed=3)
    assert made.path.read_bytes() == again.path.read_bytes()
    other = sample_to_label(saved, 10, tmp_path / "three.jsonl", seed=4)
    assert made.path.read_bytes() != other.path.read_bytes()
    everything = _lines(sample_to_label(saved, 24, tmp_path / "four.jsonl").path)
    numbers = [int(row["prompt"].split()[-1]) for row in everything]
    assert sorted(numbers) == list(range(24)) and numbers != sorted(numbers)


def test_the_same_reply_is_labelled_once(tmp_path: Path) -> None:
    rows = [Completion("p", "r", made_by={"model": name}) for name in ("a", "b")]
    saved = write_completions(tmp_path / "c.jsonl", [*rows, Completion("p", "cut \ud83d")])
    made = sample_to_label(saved, 2)
    assert made.path.name == "c.to_label.jsonl" and made.distinct == 2
    _fill(made.path, ["compliance"] * 2)
    assert judge_agreement(saved, made.path, "prefix").all_labels.accuracy.k == 2


def test_agreement_with_what_a_person_wrote(tmp_path: Path) -> None:
    saved = _saved(tmp_path)
    path = sample_to_label(saved, 24).path
    own = {"I can't": "refusal", "I'm sor": "partial", "Sure, f": "compliance", "": "empty"}
    labels = [own[row["response"][:7]] for row in _lines(path)]
    _fill(path, [*labels[:20], "", " ", "", ""])
    found = judge_agreement(saved, path, "prefix")
    assert found.unlabelled == 4 and found.all_labels.accuracy.n == 20
    counts = {label: labels[:20].count(label) for label in LABELS}
    table = found.all_labels.confusion
    assert table["partial"]["refusal"] == counts["partial"] and table["partial"]["partial"] == 0
    assert table["refusal"]["refusal"] == counts["refusal"]
    assert found.all_labels.accuracy.k == 20 - counts["partial"]
    # In part or in full: here the judge is right every time.
    assert found.refusing.accuracy.rate == found.refusing.kappa == 1.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_kappa_is_that_of_its_definition(pairs: list[tuple[str, str]]) -> None:
    found = agreement(pairs, "abc")
    n = len(pairs)
    observed = sum(one == other for one, other in pairs) / n
    chance = sum((one == other) for one, _ in pairs for _, other in pairs) / n**2
    assert found.accuracy.rate == observed
    if found.kappa is None:
        assert chance == 1.0
    else:
        assert found.kappa == pytest.approx((observed - chance) / (1 - chance))
    assert sum(sum(row.values()) for row in found.confusion.values()) == n


def test_kappa_of_a_worked_example() -> None:
    # Cohen's kappa of a 2x2 table with 20, 5, 10, 15: 0.7 observed, 0.5 by chance.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = agreement(pairs, "yn")
    assert found.kappa == pytest.approx(0.4) and found.accuracy.rate == 0.7


def test_labels_that_are_none_are_named(tmp_path: Path) -> None:
    saved = _saved(tmp_path)
    path = sample_to_label(saved, 6).path
    blank = path.read_text()
    with pytest.raises(RequestError, match="none of its 6 rows"):
        judge_agreement(saved, path, "refusal")
    _fill(path, ["refusal", "REFUSAL ", "refused"])
    with pytest.raises(FormatError, match="row 3.*'refused'.*did you mean refusal"):
        judge_agreement(saved, path, "refusal")
    path.write_text(blank + blank.splitlines()[0] + "\n")
    with pytest.raises(FormatError, match="row 7: the same reply as row 1"):
        judge_agreement(saved, path, "refusal")
    path.write_text(blank.replace("Do thing", "Undo thing", 1))
    with pytest.raises(FormatError, match="row 1: not one of the replies"):
        judge_agreement(saved, path, "refusal")
    path.write_text('{"prompt": "p", "response": "r", "label": 3}\n')
    with pytest.raises(FormatError, match="row 1"):
        judge_agreement(saved, path, "refusal")


def test_a_persons_work_is_not_written_over(tmp_path: Path) -> None:
    saved = _saved(tmp_path)
    path = sample_to_label(saved, 6).path
    sample_to_label(saved, 7)  # nothing was labelled yet
    _fill(path, ["refusal", "unsure"])
    before = path.read_bytes()
    with pytest.raises(RequestError, match="holds 2 labels"):
        sample_to_label(saved, 6)
    assert path.read_bytes() == before
    for count in (0, 25):
        with pytest.raises(RequestError, match="1 to 24"):
            sample_to_label(saved, count, tmp_path / "other.jsonl")


def test_rates_are_rebuilt_by_suite(tmp_path: Path) -> None:
    found = rejudge_file(_saved(tmp_path), ["prefix"])
    assert found.path.name == "c.prefix.jsonl" and found.path.is_file()
    first, second = found.suites
    assert (first.suite, second.suite) == ("over_refusal", "non_refusal")
    # Even rows refuse or are empty, odd ones comply or refuse.
    assert (first.rate.k, first.rate.n) == (6, 12) and first.counts == {"refusal": 6, "empty": 6}
    assert (second.rate.k, second.rate.n) == (6, 12) and second.counts_compliance
    assert found.as_json()["labels"] == {"compliance": 6, "empty": 6, "refusal": 12}
    assert [one.suite for one in suite_rates([Completion("p", "r")])] == ["replies"]


def test_the_rates_are_those_of_the_evaluation(pico: Path, tmp_path: Path) -> None:
    words = ("eval", str(pico), "--suite", "safety,over-refusal", "--limit", "6", "--offline")
    done = snt(*words, "--new-tokens", "5", "-o", "ev", "--json", at=tmp_path)
    assert done.returncode == 0, done.stderr
    again = snt("eval", "--rejudge", "ev/completions.jsonl", "-o", "r.jsonl", "--json", at=tmp_path)
    assert again.returncode == 0, again.stderr
    report, rebuilt = json.loads(done.stdout)["metrics"], json.loads(again.stdout)["metrics"]
    assert rebuilt.keys() == report.keys()
    for name, metric in rebuilt.items():
        assert metric == {key: report[name][key] for key in metric}
    saved = [tmp_path / name for name in ("ev/completions.jsonl", "r.jsonl")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    shown = snt("eval", "--rejudge", "r.jsonl", at=tmp_path).stdout
    assert "over_refusal" in shown and "in non_refusal of replies that do not refuse" in shown


def test_the_commands(tmp_path: Path) -> None:
    _saved(tmp_path)
    words = ("eval", "--rejudge", "c.jsonl")
    done = snt(*words, "--sample", "8", "--label-file", "to.jsonl", "--json", at=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["n"] == 8, done.stderr
    _fill(tmp_path / "to.jsonl", ["refusal"] * 5)
    done = snt(*words, "--labels", "to.jsonl", "--json", at=tmp_path)
    report = json.loads(done.stdout)
    assert report["labelled"] == 5 and report["unlabelled"] == 3
    low, high = report["all_labels"]["interval"]
    assert 0 <= low <= report["all_labels"]["accuracy"] <= high <= 1
    done = snt(*words, "--labels", "to.jsonl", at=tmp_path)
    assert "kappa" in done.stdout and "3 without a label" in done.stdout
    _fill(tmp_path / "to.jsonl", ["refsal"])
    for more in (
        ("--labels", "to.jsonl"),
        ("--labels", "to.jsonl", "--sample", "3"),
        ("--label-file", "x.jsonl"),
        ("--sample", "3", "-o", "x.jsonl"),
        ("--sample", "99"),
        ("--labels", "nowhere.jsonl"),
        ("--judge", "oracle"),
    ):
        done = snt(*words, *more, at=tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (more, done.stderr)
    assert snt("eval", "--sample", "3", at=tmp_path).returncode == 2
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p"}\n')
    (tmp_path / "none.jsonl").write_text("")
    for name, said in (("bad.jsonl", "line 2: no 'response'"), ("none.jsonl", "no completions")):
        done = snt("eval", "--rejudge", name, at=tmp_path)
        assert done.returncode == 2 and said in done.stderr.replace("\n", " "), done.stderr


@pytest.mark.parametrize("more", [[], ["--sample", "4"], ["--labels", "to.jsonl"]])
def test_no_torch_is_imported(tmp_path: Path, more: list[str]) -> None:
    saved = _saved(tmp_path)
    _fill(sample_to_label(saved, 4, tmp_path / "to.jsonl").path, ["refusal"])
    words = ["snt", "eval", "--rejudge", "c.jsonl", *more]
    code = (
        f"import sys; sys.argv = {words!r}\nimport snt.cli\n"
        "try: snt.cli.main()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_judge_of_harm_gives_no_rate_of_harmless_prompts() -> None:
    rows = [
        Completion("p", "", "non_refusal", 0, label="empty"),
        Completion("q", "r", "non_refusal", 1, label="partial"),
        Completion("p", "r", "over_refusal", 0, label="refusal"),
    ]
    assert [(one.suite, one.rate.k) for one in suite_rates(rows, scores_harm=True)] == [
        ("non_refusal", 1)  # a reply that says nothing harms nobody
    ]
    assert [one.rate.k for one in suite_rates(rows)] == [2, 1]
