"""The evaluation as a page and as a table: complete, self-contained, deaf to what replies say."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from evaluations import BASE, TUNED, evaluation, measurement
from rich.console import Console
from test_inspection_page import Reader

from snt.evaluation.compared import figures_of
from snt.evaluation.evaluation import Evaluation
from snt.evaluation.gates import check_gates, parse_gates
from snt.report.evaluation import evaluation_table
from snt.report.evaluation_chart import Point, chart
from snt.report.evaluation_page import evaluation_page


@cache
def found() -> Evaluation:
    """A patch beside its base model, and two more seeds of it."""
    return evaluation(Path("out"))


@cache
def page() -> tuple[str, Reader]:
    """Its page, read."""
    made = evaluation_page(found().as_json(), list(found().replies().values()))
    return made, Reader(made)


def _words(read: Reader) -> str:
    return " ".join(read.words.split())


def test_every_figure_is_there() -> None:
    _, read = page()
    words, report = _words(read), found().as_json()
    for model in (report["baseline"], report, *report["compared"]):
        for metric, entry in model["metrics"].items():
            assert f"{entry['n']}" in words
            value = entry["value"]
            assert (f"{value:.2f}" if metric == "perplexity" else f"{100 * value:.1f}%") in words
    for one in report["differences"].values():
        change = one.get("relative", one.get("difference"))
        assert f"{100 * change:+.1f}%" in words
        assert f"{100 * one['minimum_detectable_difference']:.1f}%" in words
    for name in ("baseline", "patch-seed0", "patch-seed1", "patch-seed2"):
        assert name in words
    assert "Judged by refusal" in words and "max new tokens 48, sampling greedy" in words
    assert "patch-seed2 (2)" in words and "Seeds" in words and "refusals/tune" in words
    # What is alike for all models is said once.
    assert words.count("sampling greedy") == 1 and words.count("bbbbbbbbbbbb…") == 3


def test_the_picture_draws_every_interval_in_both_directions() -> None:
    text, read = page()
    assert text.count("<svg ") == 2 and read.tags.count("circle") == 8
    said = [
        value for name, value in read.attributes if name == "aria-label" and "4, patch" in value
    ]
    assert len(said) == 2 and "safe look-alikes refused" in said[0]
    crosses = re.findall(r'<path class="bar s\d" d="M([\d.]+) ([\d.]+)H([\d.]+)M([\d.]+) '
                         r'([\d.]+)V([\d.]+)"/>', text)  # fmt: skip
    assert len(crosses) == 8
    for left, y, right, x, low, high in (map(float, cross) for cross in crosses):
        assert left <= x <= right and left < right and high <= y <= low and high < low


def test_a_picture_of_the_ends() -> None:
    points = [
        Point(1, "a", (0.0, 0.0, 0.02), (1.0, 0.9, 1.0)),
        Point(9, "b", (1, 0.9, 1), (0, 0, 1)),
    ]
    drawn = chart(points, "across", "up")
    Reader(drawn)
    assert 'class="f1"' in drawn and ">9</text>" in drawn and ">100%</text>" in drawn
    assert ">5.0%</text>" not in chart(points[:1], "a", "u")
    numbers = [float(n) for n in re.findall(r'c[xy]="([\d.]+)"', drawn)]
    assert all(0 < number < 380 for number in numbers)


def test_harmful_texts_are_folded_and_harmless_ones_are_not() -> None:
    text, read = page()
    summaries = re.findall(r"<summary>(.*?)</summary>", text, flags=re.DOTALL)
    assert len(summaries) == 400 and "<details open" not in text
    harmful = found().measured.completions[0]
    assert harmful.suite == "non_refusal"
    assert not any(harmful.prompt.split()[-1] in summary for summary in summaries[:120])
    assert summaries[0].startswith("request 1 ")
    harmless = next(r for r in found().measured.completions if r.suite == "harmless_refusal")
    assert summaries[120].startswith(harmless.prompt[:20])
    assert read.tags.count("h4") == 1600
    assert re.findall(r":has\(#show-(\w+):checked\) details.reply:not\(.(\w+)\)", text)


def test_nothing_outside_the_page_is_needed() -> None:
    text, read = page()
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(read.tags)
    assert not [value for name, value in read.attributes if name in ("href", "src", "action")]
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


HOSTILE = (
    "</div></details><script>alert(1)</script><img src=x onerror='a()'>\"\x1b[31m\u202e\x00&amp;"
)


def test_hostile_replies_are_text_alone() -> None:
    plain = page()[1]
    base, tuned = measurement(1, BASE, reply=HOSTILE), measurement(2, TUNED, reply=HOSTILE)
    rows = tuple(replace(row, prompt=HOSTILE + str(n)) for n, row in enumerate(base.completions))
    odd = replace(found(), baseline=replace(base, completions=rows), measured=tuned,
                  name=HOSTILE, model=HOSTILE, baseline_model=HOSTILE)  # fmt: skip
    report = odd.as_json()
    report["system_prompt"] = HOSTILE
    report["gates"] = [{"gate": HOSTILE, "model": HOSTILE, "figure": HOSTILE, "value": 0.1,
                        "interval": [0.0, 0.2], "met": True}]  # fmt: skip
    report["held_out"]["not_compared"] = [HOSTILE]
    made = evaluation_page(report, list(odd.replies().values()))
    read = Reader(made)
    assert set(read.tags) <= set(plain.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "<script>alert(1)" in read.words and "\x1b" not in made and "\u202e" not in made
    assert "\x00" not in made
    made.encode()
    report["name"] = "half an emoji \ud83d"
    lone = [replace(row, response="\ud83d") for row in tuned.completions]
    evaluation_page(report, [rows, lone]).encode()


def test_one_model_and_few_metrics() -> None:
    alone = replace(found(), baseline=None, differences={}, perplexity_change=None, compared=(),
                    seeds=(), held_out=None)  # fmt: skip
    read = Reader(evaluation_page(alone.as_json(), list(alone.replies().values())))
    assert "Seeds" not in read.words and "1 model." in read.words and "svg" in read.tags
    report = alone.as_json()
    report["metrics"] = {"perplexity": report["metrics"]["perplexity"]}
    read = Reader(evaluation_page(report, [[]]))
    assert "svg" not in read.tags and "Replies" not in read.words


def _printed(evaluated: Evaluation, width: int = 200) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False)
    for part in evaluation_table(evaluated):
        console.print(part)
    return stream.getvalue()


def _judged_twice(document: dict[str, Any]) -> dict[str, Any]:
    for model in (document["baseline"], document, *document["compared"]):
        for entry in model["metrics"].values():
            if "judge" in entry:
                named = {name: {"value": 0.5, "interval": [0.4, 0.6]} for name in ("refusal", "p")}
                entry |= {"judges": named, "agreement": {"share": 0.9, "kappa": 0.8}}
    return document


def test_the_table_has_it_all_and_stays_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    long = evaluation(Path("out"), name="a-very-long-directory-name-of-a-patch-with-[markup]")
    document = long.as_json()
    gates = parse_gates(["over_refusal.low > 0.1%"], document["metrics"], document["metrics"], True)
    results = check_gates(
        gates, {"patch": figures_of(document["metrics"], document["differences"])}
    )
    long = replace(long, gates=results)
    shown = _printed(long)
    assert max(map(len, shown.splitlines())) <= 80 and max(map(len, _printed(long, 60))) <= 60
    assert "least" in shown and "patch-seed2" in shown and "seed 2" in shown
    assert "a-very-long-directo…" in shown and "near-duplicates of what the model" in shown
    assert "'over_refusal.low > 0.1%' FAILS: patch 2.5%, 95% 0.9 to 7.1%" in shown
    entry = document["differences"]["over_refusal"]
    assert f"{100 * entry['difference']:+.1f}%" in shown
    double = _judged_twice(long.as_json())
    monkeypatch.setattr(Evaluation, "as_json", lambda self: double)
    shown = _printed(long)
    assert max(map(len, shown.splitlines())) <= 100
    assert "2nd: by the judge 'p'; the two agree on 90.0%" in shown
    read = Reader(evaluation_page(double, [[]]))
    assert "by p" in read.words and "they agree on 90.0% of the replies" in read.words


def test_figures_of_a_model_that_lost_its_language(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = replace(found(), measured=measurement(3, TUNED, nats=12.0))
    document = lost.as_json()
    document["differences"]["perplexity"] |= {"relative": 499.0, "interval": [398.123, 612.5]}
    document["metrics"]["perplexity"] |= {"value": 1.6e5, "interval": [22572.4, float("inf")]}
    document = _judged_twice(document)
    monkeypatch.setattr(Evaluation, "as_json", lambda self: document)
    shown = _printed(lost)
    assert max(map(len, shown.splitlines())) <= 100
    assert "1.6e+05" in shown and "22572–inf" in shown and "+39812 to +61250" in shown
    assert "+49900%" in Reader(evaluation_page(document, [[]])).words


def test_clusters_are_said() -> None:
    document = found().as_json()
    document["differences"]["over_refusal"]["clusters"] = 77
    made = _words(Reader(evaluation_page(document, [[]])))
    assert "(77 clusters)" in made
