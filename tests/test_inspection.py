"""What `inspect` says: counts against base rates, overlaps against chance, and how it is drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from snt.anatomy import KINDS, Anatomy
from snt.errors import FormatError, MismatchError, MissingFileError, RequestError
from snt.file_facts import MaskFacts, PatchFacts, ScoresFacts, mask_facts
from snt.inspection import inspect_files
from snt.masks import NeuronMask, save_mask
from snt.overlap import overlap_of
from snt.random_masks import random_like
from snt.report.inspection import render
from snt.report.layer_map import LayerMap
from snt.scores import NeuronScores, Scores
from snt.scores_files import ScoresFile, save_scores
from snt.tensor_files import write_tensors

# 10 ffn, 8 q, 4 k and 4 v neurons a layer: 26, and 78 in all.
ANATOMY = Anatomy("llama", 3, d_model=8, d_ff=10, heads=4, kv_heads=2, head_dim=2)


def _mask(
    counts: Mapping[tuple[int, str], int], anatomy: Anatomy = ANATOMY, **provenance: Any
) -> NeuronMask:
    neurons = {place: torch.arange(count, dtype=torch.int32) for place, count in counts.items()}
    return NeuronMask(anatomy, neurons, provenance=provenance)


def _saved(path: Path, mask: NeuronMask) -> Path:
    save_mask(mask, path)
    return path


def _drawn(*paths: Path, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, legacy_windows=False)
    console.print(render(inspect_files(paths)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_counts_against_base_rates(tmp_path: Path) -> None:
    model = {"id": "m", "parameters": 1000}
    mask = _mask({(0, "ffn"): 3, (2, "ffn"): 1, (2, "k"): 4}, model=model)
    (facts,) = inspect_files([_saved(tmp_path / "m.safetensors", mask)]).files
    assert isinstance(facts, MaskFacts)
    assert (facts.name, facts.neurons, facts.parameters) == ("m.safetensors", 8, 4 * 24 + 4 * 8)
    assert facts.parameter_share == pytest.approx(0.128)
    keys, ffn = facts.kinds["k"], facts.kinds["ffn"]
    assert (keys.count, keys.total, keys.share) == (4, 12, pytest.approx(1 / 3))
    assert keys.base_rate == pytest.approx(12 / 78) and keys.mask_share == pytest.approx(0.5)
    assert keys.lift == pytest.approx(0.5 / (12 / 78))
    assert facts.layers["ffn"] == (3, 0, 1) and facts.layers["v"] == (0, 0, 0)
    assert [facts.thirds[name].count for name in ("early", "middle", "late")] == [3, 0, 5]
    assert facts.thirds["late"].lift == pytest.approx((5 / 8) * 3)
    document = facts.as_json()
    assert document["counts"]["by_layer"][2] == {"ffn": 1, "q": 0, "k": 4, "v": 0}
    assert document["shares"]["by_layer"][2]["k"] == 1.0
    assert document["base_rates"] == pytest.approx(ANATOMY.base_rates())
    assert json.loads(json.dumps(document))["lifts"]["ffn"] == pytest.approx(ffn.lift)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 30, 80])
def test_thirds_cover_the_layers_once(layers: int) -> None:
    anatomy = Anatomy("llama", layers, 8, 10, 4, 2, 2)
    facts = mask_facts("m", _mask({(layer, "q"): 1 for layer in range(layers)}, anatomy))
    spans = [third.layers for third in facts.thirds.values() if third.layers]
    held = [layer for first, last in spans for layer in range(first, last + 1)]
    assert held == list(range(layers))
    assert sum(third.base_rate for third in facts.thirds.values()) == pytest.approx(1)
    assert all(third.lift == pytest.approx(1) for third in facts.thirds.values())


def test_overlap_and_chance(tmp_path: Path) -> None:
    first, second = _mask({(0, "ffn"): 5, (1, "q"): 2}), _mask({(0, "ffn"): 3, (2, "v"): 1})
    files = [_saved(tmp_path / name, mask) for name, mask in (("a", first), ("b", second))]
    (overlap,) = inspect_files(files).overlaps
    assert (overlap.first, overlap.second) == ("a", "b")
    assert (overlap.intersection, overlap.union) == (3, 8)
    assert overlap.iou == first.overlap(second)
    assert overlap.expected == pytest.approx(5 * 3 / 10) and overlap.ratio == pytest.approx(2)
    drawn = [len(first.intersect(random_like(second, seed))) for seed in range(300)]
    assert sum(drawn) / 300 == pytest.approx(overlap.expected, abs=0.2)
    empty = overlap_of("a", _mask({}), "b", _mask({}))
    assert empty.iou == 1.0 and empty.ratio is None


def test_masks_of_different_models_are_not_compared(tmp_path: Path) -> None:
    other = Anatomy("llama", 4, 8, 10, 4, 2, 2)
    files = [_saved(tmp_path / "a", _mask({})), _saved(tmp_path / "b", _mask({}, other))]
    with pytest.raises(MismatchError, match=r"a and b .* \(layers 3 and 4\)"):
        inspect_files(files)


def _scores(path: Path) -> Scores:
    places = {}
    generator = torch.Generator().manual_seed(0)
    for layer in range(3):
        for kind in ("ffn", "k"):
            importance = torch.rand(6, ANATOMY.size(kind), generator=generator)
            importance[:, 2] += 1 + layer
            places[layer, kind] = NeuronScores.of(importance)
    save_scores(ScoresFile(ANATOMY, Scores(places), {"model": {"id": "m"}}), path)
    return Scores(places)


def test_scores(tmp_path: Path) -> None:
    scores = _scores(tmp_path / "m.scores.safetensors")
    (facts,) = inspect_files([tmp_path / "m.scores.safetensors"]).files
    assert isinstance(facts, ScoresFacts)
    assert (facts.prompts, facts.places, facts.neurons) == (6, 6, 42)
    minima = torch.cat([scores.places[layer, "k"].minimum for layer in range(3)])
    assert list(facts.quantiles) == ["ffn", "k"]
    assert facts.quantiles["k"][0] == pytest.approx(float(minima.min()))
    assert facts.quantiles["k"][2] == pytest.approx(float(minima.quantile(0.5)))
    assert len(facts.top) == 5
    # Neuron 2 is first in its place on every prompt; the larger minimum decides.
    assert [neuron.index for neuron in facts.top] == [2] * 5 and facts.top[0].layer == 2
    assert facts.top[0].typical_rank == 0.0 and facts.top[0].worst_rank == 0
    assert facts.as_json()["minimum_quantiles"]["k"]["0.5"] == facts.quantiles["k"][2]
    assert "6 prompts, 42 neurons in 6 places" in _drawn(tmp_path / "m.scores.safetensors")


def _patch(directory: Path, report: str | None = None, mask: NeuronMask | None = None) -> Path:
    directory.mkdir()
    metadata = {"format": "snt-patch", "version": 1, "model": {"id": "m"}}
    write_tensors(directory / "patch.safetensors", {"x": torch.zeros(1)}, metadata)
    if report is not None:
        (directory / "report.json").write_text(report)
    if mask is not None:
        save_mask(mask, directory / "mask.safetensors")
    return directory


def test_patches(tmp_path: Path) -> None:
    figures = {"steps": 7, "changed": 5, "masked": 8, "outside_changed": 0, "max_abs_delta": 0.25}
    figures |= {"before": {"non_refusal": 0.9}, "after": {"non_refusal": 0.1, "perplexity": 9.5}}
    whole = _patch(tmp_path / "p", json.dumps(figures), _mask({(0, "q"): 1}))
    bare = _patch(tmp_path / "bare")
    (facts, again, alone) = inspect_files([whole, whole / "patch.safetensors", bare]).files
    assert isinstance(facts, PatchFacts) and isinstance(again, PatchFacts)
    assert facts.report == figures and facts.mask is not None and facts.mask.neurons == 1
    assert again.mask is not None and (facts.name, again.name) == ("p", "patch.safetensors")
    assert alone.as_json()["mask"] is None and alone.as_json()["report"] is None
    text = " ".join(_drawn(whole, bare).split())
    assert "5 of 8 masked entries changed" in text and "harmful, not refused" in text
    assert "90.0% 10.0%" in text and "- 9.50" in text and "no report.json" in text


def test_a_patch_and_a_mask_are_compared(tmp_path: Path) -> None:
    mask = _mask({(0, "q"): 4})
    files = [_patch(tmp_path / "p", mask=mask), _saved(tmp_path / "m", mask)]
    (overlap,) = inspect_files(files).overlaps
    assert (overlap.first, overlap.second, overlap.iou) == ("p", "m", 1.0)


@pytest.mark.parametrize("report", ["{", "[]", "[" * 100_000])
def test_a_damaged_report(tmp_path: Path, report: str) -> None:
    with pytest.raises(FormatError, match="report.json"):
        inspect_files([_patch(tmp_path / "p", report)])


def test_files_that_are_none_of_these(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise").write_bytes(b"\x00" * 40)
    save_file({"x": torch.zeros(1)}, tmp_path / "plain")
    write_tensors(tmp_path / "other", {"x": torch.zeros(1)}, {"format": "snt-atlas", "version": 1})
    write_tensors(tmp_path / "new", {"x": torch.zeros(1)}, {"format": "snt-mask", "version": 2})
    for name, error, words in [
        ("none", MissingFileError, "does not exist"),
        ("empty", MissingFileError, "without a patch.safetensors"),
        ("noise", FormatError, "noise"),
        ("plain", FormatError, "no snt metadata"),
        ("other", FormatError, "snt-atlas"),
        ("new", FormatError, "version 2"),
    ]:
        with pytest.raises(error, match=words):
            inspect_files([tmp_path / name])
    with pytest.raises(RequestError, match="no file"):
        inspect_files([])


@pytest.mark.parametrize(
    "lie",
    [{"layers": 10**9}, {"layers": 0}, {"d_ff": -1}, {"heads": 2.5}, {"head_dim": True}],
)
def test_a_model_that_cannot_be(tmp_path: Path, lie: dict[str, Any]) -> None:
    counts = dict.fromkeys(KINDS, 0)
    metadata = {"format": "snt-mask", "version": 1, "counts": counts}
    write_tensors(tmp_path / "m", {}, {**metadata, "anatomy": {**ANATOMY.shape(), **lie}})
    with pytest.raises(FormatError, match="no model"):
        inspect_files([tmp_path / "m"])


@pytest.mark.parametrize("total", [0, 7, "many", 1.5, True])
def test_a_lie_about_the_models_parameters(tmp_path: Path, total: Any) -> None:
    mask = _mask({(0, "q"): 1}, model={"parameters": total})
    with pytest.raises(FormatError, match="parameters"):
        inspect_files([_saved(tmp_path / "m", mask)])


def test_names_tell_files_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        save_mask(_mask({}), tmp_path / name / "mask.safetensors")
    paths = [tmp_path / "a" / "mask.safetensors", tmp_path / "b" / "mask.safetensors"]
    names = [file.name for file in inspect_files([*paths, paths[0]]).files]
    assert names == ["a/mask.safetensors", "b/mask.safetensors", "a/mask.safetensors (2)"]
    assert [file.name for file in inspect_files(paths[:1]).files] == ["mask.safetensors"]


@pytest.mark.parametrize("width", [40, 80, 112, 120])
@pytest.mark.parametrize("layers", [1, 2, 12, 30, 32, 70, 80, 102, 700])
def test_the_drawing_fits_its_width(tmp_path: Path, layers: int, width: int) -> None:
    anatomy = Anatomy("llama", layers, 8, 10, 4, 2, 2)
    counts = {(layer, "ffn"): layer % 4 for layer in range(layers) if layer % 4}
    files = [_saved(tmp_path / n, _mask(c, anatomy)) for n, c in (("a", counts), ("b", {}))]
    lines = _drawn(*files, width=width).splitlines()
    assert max(map(len, lines)) <= width
    axis = " ".join(line for line in lines if line.startswith("layer"))
    assert " 0" in axis and (layers > 80 or str(layers - 1) in axis.split())


def test_the_map_reads_without_colour() -> None:
    counts = {"ffn": [0, 1, 2, 4, 8], "q": [0, 0, 0, 0, 1]}
    layers = LayerMap(counts, {"ffn": 16, "q": 16})
    for encoding, rows in (
        ("utf-8", ["  ffn  ·  ░░░▒▒▒▓▓▓███", "    q  ·  ·  ·  ·  ░░░"]),
        ("ascii", ["  ffn  .  ---+++***###", "    q  .  .  .  .  ---"]),
    ):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        console = Console(file=file, width=80, legacy_windows=False)
        console.print(layers)
        file.seek(0)
        assert file.read().splitlines()[:2] == rows


def test_nothing_of_a_file_reaches_the_terminal_as_control_or_markup(tmp_path: Path) -> None:
    mask = _mask(
        {(0, "q"): 1},
        model={"id": "[red]\x1b[31mm", "x": [[[[["deep"]]]]]},
        parents=[{"selection": "\x1b]0;"}, 3],
        system_prompt="s" * 5000,
    )
    text = _drawn(_saved(tmp_path / "[b]m\x1b[1m", mask))
    assert "\x1b" not in text and "[red]" in text and "[b]m" in text and "deep" not in text
    assert text.count("s" * 20) < 20
