"""Tuning's options on pico models: cost, schedules, guard, loggers, base models, the warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import snt
from conftest import TEMPLATE, write_pico
from torch import Tensor

from snt.backend import get_backend
from snt.chat import Chat
from snt.deltas import Deltas, masked_slices
from snt.errors import NegativeResult, RequestError, UnavailableError, UnknownNameError
from snt.guarding import Guard
from snt.loggers import check_loggers
from snt.masks import NeuronMask
from snt.objective import Kept, Pair, step_of
from snt.recomputing import recomputed
from snt.retaining import kept_prompts, kept_texts
from snt.training import Plan, Schedule, step_loss, train

LONG = "The same beginning of every prompt, "


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")


def _deltas(model: Any, layers: tuple[int, ...]) -> Deltas:
    neurons = {
        (layer, kind): torch.arange(6, dtype=torch.int32)
        for layer in layers
        for kind in ("ffn", "q", "k", "v")
    }
    return Deltas.zeros(masked_slices(NeuronMask(model.anatomy, neurons)), model)


def _plan(model: Any, schedule: Schedule) -> Plan:
    chat = Chat(model.tokenizer, model.context)
    pairs = [Pair(*chat.pair_ids(f"{LONG}{n}", "No.")) for n in range(8)]
    kept = kept_prompts(model, chat, [f"{LONG}tea", f"{LONG}day"], positions=3)
    texts = kept_texts(model, chat, ["Rain fell.", "A dog ran home.", "So."])
    return Plan(pairs, [kept], schedule, chat.pad_id, texts)


@pytest.fixture
def deep(tmp_path: Path) -> Any:
    """A model of four layers."""
    return get_backend("full").load(
        write_pico(tmp_path / "deep", num_hidden_layers=4), torch.float32
    )


def test_no_graph_below_the_first_masked_layer(deep: Any) -> None:
    """Backward stops there by itself: what is below has no graph, in shared beginnings too."""
    deltas, plan = _deltas(deep, (2,)), _plan(deep, Schedule(batch=4))
    seen: dict[int, list[bool]] = {number: [] for number in range(4)}
    hooks = [
        deep.module(number, "").register_forward_hook(
            lambda _m, _i, out, n=number: seen[n].append(out.requires_grad)
        )
        for number in range(4)
    ]
    with deep.training(), deltas.attached(deep):
        for part in range(plan.parts):
            step_loss(deep, plan[part]).backward()
    for hook in hooks:
        hook.remove()
    assert not any(seen[0] + seen[1]) and all(seen[2] + seen[3])
    assert all(len(calls) > plan.parts for calls in seen.values())  # beginnings went apart
    assert all(parameter.grad is None for parameter in deep.model.parameters())


def _gradients(model: Any, deltas: Deltas, plan: Plan, recompute: bool) -> tuple[list[Tensor], int]:
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    deltas.zero_grad()
    with model.training(), deltas.attached(model):
        for part in range(plan.parts):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                if recompute:
                    with recomputed(model, 1):
                        step_loss(model, plan[part]).backward()
                else:
                    step_loss(model, plan[part]).backward()
    return [value.grad.clone() for value in deltas.values if value.grad is not None], saved


def test_recomputed_layers_give_the_same_gradients_and_keep_less(deep: Any) -> None:
    deltas, plan = _deltas(deep, (1, 3)), _plan(deep, Schedule(batch=4))
    with torch.no_grad():
        for value in deltas.values:
            value.normal_(0.0, 0.05)
    plain, kept = _gradients(deep, deltas, plan, False)
    again, less = _gradients(deep, deltas, plan, True)
    assert len(plain) == len(again) == len(deltas.values)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert less < 0.5 * kept
    assert not any("forward" in vars(deep.module(n, "")) for n in range(4))


def test_gradient_checkpointing_trains_to_the_same_deltas(deep: Any, tmp_path: Path) -> None:
    plan = _plan(deep, Schedule(batch=4, epochs=1))
    found = []
    for recompute in (False, True):
        deltas = _deltas(deep, (1,))
        train(deep, deltas, plan, tmp_path, gradient_checkpointing=recompute)
        found.append(deltas.tensors())
    for key, (_, delta) in found[0].items():
        torch.testing.assert_close(delta, found[1][key][1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "warmup", "rates"),
    [
        ("linear", 0.0, [1.0, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1.0, 0.854, 0.5, 0.146]),
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 0.5, [0.0, 0.5, 1.0, 1.0]),
    ],
)
def test_learning_rates(pico: Path, tmp_path: Path, shape: str, warmup: float, rates: Any) -> None:
    model = get_backend("full").load(pico, torch.float32)
    schedule = Schedule(
        epochs=1, batch=2, retain_batch=2, shape=shape, warmup=warmup, learning_rate=0.01
    )
    deltas = _deltas(model, (0,))
    train(model, deltas, _plan(model, schedule), tmp_path, report_to=["tensorboard"])
    logged = _scalars(tmp_path / "logs")
    assert logged["train/learning_rate"][:4] == pytest.approx([0.01 * r for r in rates], abs=1e-4)
    assert all(len(logged[f"train/loss_{name}"]) == 4 for name in ("refuse", "retain", "text"))
    assert len(logged["train/grad_norm"]) == 4


def _scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_loggers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loggers(["tensorboard"])
    with pytest.raises(UnknownNameError, match="tensorboard"):
        check_loggers(["tensorbord"])
    monkeypatch.setattr("snt.loggers.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="pip install wandb") as caught:
        check_loggers(["wandb"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "wrong", [{"shape": "square"}, {"accumulate": 0}, {"warmup": 1.0}, {"batch": 0}]
)
def test_schedules_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Schedule(**wrong)


def test_accumulated_batches_make_one_step() -> None:
    pairs = [Pair([n, 1, 2], 1) for n in range(12)]
    top = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    kept, texts = [Kept([9], 0, *top)], [Kept([n, n], 0, *top, 0) for n in range(5)]
    one = Plan(pairs, [kept], Schedule(epochs=1, batch=6, retain_batch=4), 0, texts)
    other = Plan(
        *(pairs, [kept], Schedule(epochs=1, batch=2, retain_batch=2, accumulate=3), 0, texts)
    )
    assert one.steps == other.steps == 2 and one.batch == other.batch
    rows = [
        other[part].batch.input_ids.shape[0]
        for part in range(other.parts)
        if other[part].part == "text"
    ]
    assert sum(rows) == 3
    for part in ("refuse_weights", "retain_weights"):
        total = sum(float(getattr(other[n], part).sum()) for n in range(other.parts))
        assert total == pytest.approx(1.0 if part == "refuse_weights" else 2.0)


def test_a_text_is_kept_alike_at_every_position(pico: Path) -> None:
    model: Any = get_backend("full").load(pico, torch.float32)
    chat = Chat(model.tokenizer, model.context)
    (kept,) = kept_texts(model, chat, ["Rain fell all day long."], longest=9)
    assert len(kept.ids) == len(kept.top_ids) == 9 and kept.start == 0
    step = step_of([], [kept], 0, 0, 1, part="text")
    assert step.part == "text" and step.retain_weights.tolist() == pytest.approx([1 / 9] * 9)
    assert abs(float(step_loss(model, step))) < 1e-5
    with pytest.raises(RequestError, match="text 2"):
        kept_texts(model, chat, ["Rain fell.", "x"])


def _course(points: list[tuple[float, float]]) -> Guard:
    left = iter(points)
    return Guard(lambda: next(left), every=2, limit=0.1)


def test_the_guard_stops_and_keeps_the_best(pico: Path, tmp_path: Path) -> None:
    model = get_backend("full").load(pico, torch.float32)
    schedule = Schedule(epochs=2, batch=2, retain_batch=2)
    plan = _plan(model, schedule)
    deltas, at_two = _deltas(model, (0,)), []

    def on_step(step: int, _losses: Any) -> None:
        if step == 2:
            at_two.append([value.detach().clone() for value in deltas.values])

    guard = _course([(1.0, 0.0), (0.5, 0.1), (0.5, 0.3)])
    done = train(model, deltas, plan, tmp_path, on_step=on_step, guard=guard)
    assert (done.steps, done.stopped, done.kept_step) == (4, True, 2)
    assert [point.step for point in done.curve] == [0, 2, 4]
    for value, before in zip(deltas.values, at_two[0], strict=True):
        assert torch.equal(value, before)
    with pytest.raises(NegativeResult, match="30.0% of the guard's look-alikes"):
        train(model, _deltas(model, (0,)), plan, tmp_path, guard=_course([(1.0, 0.0), (0.1, 0.3)]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, which has no chat template, and what a tuning needs."""
    folder = tmp_path_factory.mktemp("base")
    write_pico(folder / "raw", template=None)
    (folder / "bad.txt").write_text("Do harm\nDo more harm\nBreak it\n")
    (folder / "good.txt").write_text("Make tea\nName a day\nAdd two\n")
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "broken.jinja").write_text("{% for m in messages %}")
    pairs = [{"prompt": f"Harm {n}", "response": "No."} for n in range(4)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


@pytest.mark.parametrize("template", [(), ("--template", "template.jinja")])
def test_a_base_model_from_detect_to_eval(base: Path, template: tuple[str, ...]) -> None:
    detect = ("detect", "./raw", "--corpus", "bad.txt", "--against", "good.txt")
    done = snt(*detect, "--select", "budget=5%", "-o", "m.safetensors", *template, at=base)
    assert done.returncode == 0, done.stderr
    said = "no chat template: a prompt is its plain text" in " ".join(done.stderr.split())
    assert said == (not template)
    quick = ("--limit", "2", "--new-tokens", "3", "--json", *template)
    tune = ("tune", "./raw", "--mask", "m.safetensors", "--data", "pairs.jsonl")
    more = ("--retain", "good.txt", "--guard-every", "0", "--epochs", "1", "-o", "p")
    done = snt(*tune, *more, *quick, at=base)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["template"] is None) == (not template) and report["curve"] == []
    done = snt("eval", "./p", "--base", "./raw", "-o", "e", *quick, at=base)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["replies_reused"] == 6
    assert "another chat template" not in done.stderr
    if template:
        done = snt("eval", "./p", "--base", "./raw", "-o", "e", *quick[:-2], at=base)
        assert done.returncode == 0 and "another chat template" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--template", "none.jinja"), "no such file"),
        (("--template", "broken.jinja"), "no Jinja template"),
        (("--report-to", "tensorbord"), "did you mean tensorboard"),
        (("--report-to", "trackio"), "pip install trackio"),
        (("--schedule", "liner"), "did you mean linear"),
        (("--max-over-refusal", "2"), "give a share"),
        (("--accumulate", "0"), "at least 1"),
        (("--positions", "0"), "at least 1"),
        (("--retain-text", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_cannot_be_served(
    base: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snt import loggers

    find = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda n: None if n == "trackio" else find(n))
    if not (base / "m.safetensors").exists():
        detect = ("detect", "./raw", "--corpus", "bad.txt", "--against", "good.txt")
        assert snt(*detect, "--select", "budget=5%", "-o", "m.safetensors", at=base).returncode == 0
    tune = ("tune", "./raw", "--mask", "m.safetensors", "--data", "pairs.jsonl", "--no-measure")
    done = snt(*tune, "--retain", "good.txt", "-o", "never", *words, at=base)
    assert done.returncode == 2 and said in " ".join(done.stderr.split()), done.stderr
    assert not (base / "never").exists()


def test_a_rate_too_small_for_half_precision_is_said_first(base: Path) -> None:
    detect = ("detect", "./raw", "--corpus", "bad.txt", "--against", "good.txt")
    assert snt(*detect, "--select", "budget=5%", "-o", "n.safetensors", at=base).returncode == 0
    done = snt(
        *("tune", "./raw", "--mask", "n.safetensors", "--data", "pairs.jsonl", "--no-measure"),
        *("--retain", "good.txt", "--guard-every", "0", "--epochs", "1", "--lr", "1e-6"),
        *("-o", "small", "--report-to", "tensorboard", "--json"),
        at=base,
    )
    assert done.returncode == 0, done.stderr
    assert "half a bfloat16 step" in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["rounding_warning"].startswith("--lr 1e-06 x 1 steps")
    assert "train/loss_refuse" in _scalars(base / "small.logs")
