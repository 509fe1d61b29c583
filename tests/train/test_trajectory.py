"""Trajectory training: the unrolled network is the SNN, and its gradients are those of the recurrence."""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_nets import residual

from spikezip import Levels, Morph, capture, morph, quantize, spike, to_integer, verify
from spikezip.data import open_data
from spikezip.errors import RecipeError, StageError
from spikezip.export.bundle import load_network, load_snn, save_bundle
from spikezip.models import resolve
from spikezip.morph import BatchNorm
from spikezip.morph.fold import fold_batch_norm
from spikezip.quantize import Quantizer
from spikezip.run import Engine, execute
from spikezip.run.reference import reference
from spikezip.spike.encoding import Constant, Encoding, Even, Pulse, Shares, encoding_text
from spikezip.train import (
    Activity,
    AdamW,
    BiasShares,
    Penalty,
    Plan,
    TensorBatches,
    Tracker,
    Trajectory,
    finetune,
    train,
    unroll,
)
from spikezip.train.checkpoint import shares_in
from spikezip.train.recipe import check_recipe


class Convolutional(nn.Module):
    """A residual block, a max-pool, and a linear layer over tokens with the batch in the second dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.mix, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.max_pool2d(F.relu(self.second(x) + x), 2)
        tokens = F.relu(self.mix(x.flatten(2).permute(2, 0, 1)))
        return self.head(tokens.mean(0))


@pytest.mark.parametrize("encoding", [Pulse(), Even(2), Even(4)], ids=str)
@pytest.mark.parametrize(("levels", "code"), [(Levels(0, 2), 0), (Levels(0, 7), 0), (Levels(0, 3), 1)], ids=str)
def test_unrolled_it_is_the_snn(encoding: Encoding, levels: Levels, code: int):
    torch.manual_seed(0)
    x = torch.randn(6, 1, 8, 8)
    qann = quantize(morph(capture(Convolutional().eval(), x), Morph()), levels, x)
    snn = reference(spike(qann, encoding, initial_code=code), (x,), 4, stop=False)
    with torch.no_grad():
        unrolled = unroll(qann, 4, encoding, initial_code=code)(x)
        torch.testing.assert_close(unrolled[:4], snn.outputs[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(unrolled[4], qann(x), rtol=0, atol=1e-6)
        alone = unroll(qann, 4, encoding, settled=False, initial_code=code)(x)
        torch.testing.assert_close(alone, unrolled[:4])
    assert not torch.allclose(unrolled[0], unrolled[3]), "the steps are to differ"


def followed(drive: Tensor, scale: Tensor, levels: Levels, steps: int, initial: int = 0) -> Tensor:
    """The recurrence step by step, each rounding and clip with its straight-through gradient, by autograd."""
    ratio = drive / scale
    clipped = ratio.clamp(levels.lowest, levels.highest)
    goals = clipped + (torch.floor(ratio + 0.5).clamp(levels.lowest, levels.highest) - clipped).detach()
    tracer, rows = torch.full_like(drive[0], initial), []
    for t in range(steps):
        away = (goals[t] - tracer).detach()
        tracer = torch.where(away > 1, tracer + 1, torch.where(away < -1, tracer - 1, goals[t]))
        rows.append(tracer)
    return torch.stack([*rows, *goals[steps:]]) * scale


@pytest.mark.parametrize(("levels", "initial"), [(Levels(0, 3), 0), (Levels(-2, 2), 0), (Levels(0, 3), 1)], ids=str)
def test_gradients_are_those_of_the_recurrence(levels: Levels, initial: int):
    torch.manual_seed(1)
    drive = (torch.randn(5, 7, 11, dtype=torch.float64) * 2).requires_grad_()
    scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    grad = torch.randn(5, 7, 11, dtype=torch.float64)
    wanted = torch.autograd.grad(followed(drive, scale, levels, 4, initial), (drive, scale), grad)
    tracker = Tracker(scale, levels, 4, settled=True, initial=initial)
    out = tracker(drive.flatten(0, 1)).unflatten(0, (5, 7))
    torch.testing.assert_close(out, followed(drive, scale, levels, 4, initial))
    given = torch.autograd.grad(out, (drive, scale), grad)
    torch.testing.assert_close(given[0], wanted[0])
    gain = (11 * max(levels.highest, -levels.lowest)) ** -0.5
    torch.testing.assert_close(given[1], wanted[1] * gain)
    late = (followed(drive, scale, levels, 4, initial)[:4] / scale).round() != levels.codes(drive[:4], scale)
    assert 0.1 < float(late.double().mean()) < 0.9, "some tracers are to lag, and some not"


def test_a_half_precise_drive_has_the_codes_and_gradients_of_its_numbers():
    draw = torch.Generator().manual_seed(0)
    levels, drive = Levels(0, 511), (torch.rand(6, 400, generator=draw) * 300).bfloat16()
    grad, answers = torch.randn(6, 400, generator=draw).bfloat16(), []
    for given in (drive, drive.float()):
        scale = nn.Parameter(torch.tensor(0.7))
        out = Tracker(scale, levels, 2, settled=True, initial=200)(given.requires_grad_())
        given_back = torch.autograd.grad(out, (given, scale), grad.to(out.dtype))
        answers.append((out.bfloat16(), given_back[0].bfloat16(), given_back[1]))
    for narrow, wide in zip(*answers, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=0.02, atol=0.02)  # a late gradient is handed on in bfloat16
    assert answers[0][1].count_nonzero() > 0.3 * drive.numel()


def test_compiled_or_not_the_same(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(2)
    drive, grad = torch.randn(6, 33, 4) * 2, torch.randn(6, 33, 4)
    answers = []
    for least in (1 << 30, 1):
        monkeypatch.setattr(importlib.import_module("spikezip.quantize.fused"), "_WORTH_COMPILING", least)
        scale, x = nn.Parameter(torch.tensor(0.7)), drive.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a compiler the plain function runs, and says so
            out = Tracker(scale, Levels(0, 3), 2, settled=True)(x)
            out.backward(grad)
        answers.append((out.detach(), x.grad, scale.grad))
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b)


def test_it_trains_the_answer_at_a_step():
    torch.manual_seed(3)
    x = torch.randn(512, 6)
    data = TensorBatches(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), held_out=128)
    ann = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    qann = quantize(morph(capture(ann.eval(), x[:2]), Morph()), Levels(0, 2), x)
    before = [p.detach().clone() for p in qann.parameters()]
    plan = Plan(Trajectory((0, 1), Even(2)), epochs=25, batch=64, optimizer=AdamW(rate=0.01))
    done = train(qann, data, plan)
    first, last = done.history[0].validation, done.history[-1].validation
    assert last["accuracy/t2"] == last["accuracy"]
    assert last["loss"] < first["loss"]
    assert last["accuracy"] > 0.75
    assert all(torch.equal(a, b) for a, b in zip(before, qann.parameters(), strict=True)), "the QANN given is untouched"
    snn = spike(done.network, Even(2))  # type: ignore[arg-type]  # train keeps its type
    run = reference(snn, (x,), 2, stop=False)
    assert float((run.outputs[0][1].argmax(-1) == data.labels).float().mean()) > 0.75  # type: ignore[attr-defined]


def test_a_trained_network_starts_where_it_was_trained_to(tmp_path: Path):
    torch.manual_seed(4)
    x = torch.randn(64, 6)
    data = TensorBatches(x, (x[:, 0] > 0).long(), held_out=16)
    ann = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    qann = quantize(morph(capture(ann.eval(), x[:2])), Levels(0, 3), x)
    done = train(qann, data, Plan(Trajectory((0, 1), initial_code=1), batch=16)).network
    snn = spike(done)  # type: ignore[arg-type]  # train keeps its type
    assert snn.initial_code == 1
    assert spike(done, initial_code=0).initial_code == 0, "unless it is told otherwise"  # type: ignore[arg-type]
    save_bundle(done, tmp_path / "qann.spikezip")  # type: ignore[arg-type]
    assert spike(load_network(tmp_path / "qann.spikezip")).initial_code == 1
    assert spike(train(done, data, Plan(Trajectory((0, 1)), batch=16)).network).initial_code == 0  # type: ignore[arg-type]


def test_a_live_batch_norm_is_one_for_all_steps_and_is_folded_at_the_end():
    torch.manual_seed(5)
    x = torch.randn(512, 6)
    data = TensorBatches(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), held_out=128)
    ann = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16))
    ann = nn.Sequential(*ann, nn.ReLU(), nn.Linear(16, 3)).eval()
    live = quantize(morph(capture(ann, x[:2]), Morph(batch_norm=BatchNorm.LIVE)), Levels(0, 3), x)

    unrolled = unroll(live, 2, initial_code=1).train()
    means = [norm.running_mean.clone() for norm in unrolled.modules() if isinstance(norm, nn.BatchNorm1d)]
    heard: dict[nn.Module, Tensor] = {}
    norms = [norm for norm in unrolled.modules() if isinstance(norm, nn.BatchNorm1d)]
    for norm in norms:
        norm.register_forward_hook(lambda module, args, _: heard.update({module: args[0].detach()}))
    unrolled(x[:64])
    for norm, before in zip(norms, means, strict=True):
        assert heard[norm].shape == (3 * 64, 16), "two steps, and the QANN's own values"
        torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * heard[norm].mean(0))

    done = train(live, data, Plan(Trajectory((0, 1), initial_code=1), epochs=25, batch=64, optimizer=AdamW(rate=0.01)))
    assert not any(isinstance(m, nn.BatchNorm1d) for m in done.network.modules())
    held_out, labels = next(data.batches("val", 128))
    run = reference(spike(done.network), (held_out,), 2, stop=False)  # type: ignore[arg-type]  # train keeps its type
    right = float((run.outputs[0][1].argmax(-1) == labels).float().mean())  # type: ignore[attr-defined]
    assert right == pytest.approx(done.history[-1].validation["accuracy/t2"], abs=0.01)
    assert right > 0.75


class PreActivated(nn.Module):
    """A BatchNorm that cannot be folded, as others read what it reads, and one that can."""

    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.bn2, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(F.relu(self.bn2(self.second(F.relu(self.bn1(x)))) + x).flatten(1))


@pytest.mark.parametrize("pre_activated", [False, True], ids=["behind layers", "one on its own"])
@pytest.mark.parametrize("encoding", [Pulse(), Even(2), Even(4)], ids=str)
def test_with_a_live_batch_norm_it_is_the_snn_that_is_left_when_that_is_folded(encoding: Encoding, pre_activated: bool):
    torch.manual_seed(0)
    x = torch.randn(6, 1, 8, 8)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    ann = PreActivated() if pre_activated else plain
    live = quantize(morph(capture(ann.eval(), x), Morph(batch_norm=BatchNorm.LIVE)), Levels(0, 3), x)
    unrolled = unroll(live, 4, encoding).train()
    for _ in range(3):
        trained = unrolled(torch.randn(32, 1, 8, 8))  # statistics that are not those of the start
    assert trained.requires_grad
    with torch.no_grad():
        found = unrolled.eval()(x)
        fold_batch_norm(live)
        torch.testing.assert_close(found, unroll(live, 4, encoding)(x), rtol=0, atol=1e-5)
        steps = reference(spike(live, encoding), (x,), 4, stop=False).outputs[0]
        torch.testing.assert_close(found[:4], steps, rtol=0, atol=1e-5)


def test_a_live_batch_norm_refuses_a_bias_without_its_input():
    x = torch.randn(6, 3)
    ann = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    live = quantize(morph(capture(ann, x), Morph(batch_norm=BatchNorm.LIVE)), Levels(0, 3), x)
    for call in (
        lambda: unroll(live, 2, Shares((0, 256))),
        lambda: Trajectory((0, 1), learn_bias_shares=True).module(live),
    ):
        with pytest.raises(StageError, match=r"'1' \(BatchNorm1d\) is a live BatchNorm.*use Pulse\(\)"):
            call()


def test_the_loss_is_the_weighted_mean():
    torch.manual_seed(4)
    logits, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    objective = Trajectory((0, 2), settled=1.0)
    loss, numbers = objective.loss(lambda images: logits, torch.zeros(5, 1), labels)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, (2 * F.cross_entropy(logits[1], labels) + F.cross_entropy(logits[2], labels)) / 3)
    assert set(numbers) == {"accuracy", "accuracy/t1", "accuracy/t2", "accuracy/settled", "loss/t2", "loss/settled"}
    assert numbers["accuracy"] == numbers["accuracy/t2"]


def test_learned_bias_shares_are_what_the_snn_uses(tmp_path: Path):
    torch.manual_seed(5)
    x = torch.rand(120, 1, 8, 8)
    data = TensorBatches(x, (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long())
    qann = quantize(morph(capture(Convolutional().eval(), x[:2])), Levels(0, 3), x)
    objective = Trajectory((1, 0, 1), Even(3), settled=1.0, learn_bias_shares=True)
    plan = Plan(objective, epochs=3, batch=20, optimizer=AdamW(rate=0.02), validation_split=None)
    trained = finetune(qann, data, plan, out=tmp_path / "first")
    snn = spike(trained, Even(3))
    schedule = snn.bias_encoding
    assert isinstance(schedule, Shares)
    assert len(schedule.reached) == 3
    assert abs(schedule.share(1, 3) - 1 / 3) > 0.02, "the shares have been trained"
    assert spike(trained, Even(3), bias_encoding=Even(3)).bias_encoding == Even(3), "what is asked for is done"
    with torch.no_grad():
        unrolled = unroll(trained, 3, Even(3), bias_shares=BiasShares(schedule, 3, settled=True))(x)
        even = unroll(trained, 3, Even(3))(x)
    steps = reference(snn, (x,), 3, stop=False).outputs[0]
    torch.testing.assert_close(unrolled[:3], steps, rtol=0, atol=1e-6)
    assert not torch.allclose(unrolled[0], even[0], atol=1e-4), "another schedule gives other answers"
    torch.testing.assert_close(unrolled[3], even[3])
    whole = spike(to_integer(trained), Even(2))  # an even release of two is dyadic, as the shares are
    assert whole.bias_encoding == schedule
    assert load_snn(save_bundle(whole, tmp_path / "snn.spikezip")).bias_encoding == schedule
    certificate = verify(whole, x[:30])
    assert certificate.equal
    runs = [execute(whole, x[:30], 6, engine=engine) for engine in Engine]
    assert all(torch.equal(run.outputs[0], runs[0].outputs[0]) for run in runs[1:]), "to the bit, at every step"
    again = finetune(trained, data, Plan(Trajectory((1, 1)), batch=20, validation_split=None))
    assert spike(again).bias_encoding == Pulse(), "another training forgets them"
    assert shares_in(tmp_path / "first" / "network.safetensors") == encoding_text(schedule)
    for weights, start in (((1, 0, 1), schedule), ((1, 0, 0, 1), schedule), ((1, 1), Pulse())):
        unrolled = Trajectory(weights, learn_bias_shares=True).module(trained)
        shares = next(module for module in unrolled.modules() if isinstance(module, BiasShares))
        assert all(shares.encoding().share(t, 4) == start.share(t, 4) for t in range(1, 5)), "or goes on from them"


def test_bias_shares_hold_what_can_be_held_exactly():
    shares = BiasShares(Even(3), 4, settled=True)
    assert shares.encoding() == Shares((85, 171, 256, 256))
    shares.reached.data = torch.tensor([-0.5, 1.7, 0.25])
    assert shares.encoding() == Shares((0, 256, 64, 256))
    given = shares()
    assert given.tolist() == [0.0, 1.0, 0.25, 1.0, 1.0]
    (given * torch.arange(1.0, 6.0)).sum().backward()
    assert shares.reached.grad is not None
    assert shares.reached.grad.tolist() == [1.0, 2.0, 3.0], "rounding and clip pass the gradient on"
    with pytest.raises(RecipeError, match="2 steps or more"):
        Trajectory((1,), learn_bias_shares=True).module(residual())


@pytest.mark.parametrize("code", [0, 2])
def test_activity_counts_the_spikes_of_the_snn(code: int):
    torch.manual_seed(6)
    x = torch.randn(5, 1, 8, 8)
    qann = quantize(morph(capture(Convolutional().eval(), x)), Levels(0, 5), x)
    snn = spike(qann, Even(2), initial_code=code)
    run = execute(snn, x, 60, stop=False, engine=Engine.REFERENCE)
    with torch.no_grad():
        logits, counted = unroll(qann, 3, Even(2), activity=True, initial_code=code)(x)
        rest = unroll(qann, 3, Even(2), settled=False, activity=True, initial_code=code)(x)[1]
        assert float(unroll(qann, 40, Even(2), activity=True, initial_code=code)(x)[1][1]) == 0, "it has settled"
    torch.testing.assert_close(logits, unroll(qann, 3, Even(2), initial_code=code)(x))
    spikes = sum(column[:3].sum() for column in run.spikes.values())
    assert float(counted[0]) == pytest.approx(float(spikes), rel=1e-5)
    early = reference(snn, (x,), 3, stop=False)
    left = sum((run.codes[name] - early.codes[name]).abs().sum() for name in run.codes)
    assert float(counted[1]) == pytest.approx(float(left), rel=1e-5)
    assert float(left) > 0
    assert rest.tolist() == pytest.approx([float(counted[0]), 0.0])


def test_gradients_of_activity_are_those_of_the_recurrence():
    torch.manual_seed(7)
    levels, steps = Levels(-2, 3), 4
    drive = (torch.randn(steps + 1, 7, 11, dtype=torch.float64) * 2).requires_grad_()
    scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    codes = followed(drive, scale, levels, steps) / scale
    moves = codes[:steps] - torch.cat([torch.zeros_like(codes[:1]), codes[: steps - 1]])
    both = torch.stack([moves.abs().sum(), (codes[steps - 1] - codes[steps]).abs().sum()])
    tracker = Tracker(scale, levels, steps, settled=True)
    counted = Activity(tracker)(tracker(drive.flatten(0, 1)))
    torch.testing.assert_close(counted, both)
    towards = torch.tensor([1.0, 0.3], dtype=torch.float64)
    wanted = torch.autograd.grad(both @ towards, (drive, scale))
    given = torch.autograd.grad(counted @ towards, (drive, scale))
    torch.testing.assert_close(given[0], wanted[0])
    torch.testing.assert_close(given[1], wanted[1] * (11 * 3) ** -0.5)


def test_a_penalty_lowers_spikes_and_what_is_left_to_settle():
    torch.manual_seed(3)
    data = open_data("digits")
    images, _ = data.tensors("test")
    source = resolve("spikezip:digits")
    ann = train(source.module, data, Plan(epochs=3, batch=64, optimizer=AdamW(0.003))).network
    qann = quantize(morph(capture(ann, source.example)), Levels(0, 4), data.calibration(128))
    found = {}
    for name, penalty in {
        "none": Penalty(),
        "spikes": Penalty(spikes=3e-3),
        "settling": Penalty(settling=0.02),
    }.items():
        objective = Trajectory((0, 0, 1), Even(3), settled=1.0, penalty=penalty)
        done = train(qann, data, Plan(objective, epochs=2, batch=64, optimizer=AdamW(0.002)))
        run = execute(spike(done.network, Even(3)), images, engine=Engine.SWEEP)  # type: ignore[arg-type]
        at_three = sum(float(column[:3].sum()) for column in run.spikes.values()) / len(images)
        found[name] = at_three, float(run.settled_at.double().mean()), done.history[-1]
    assert found["spikes"][0] < 0.8 * found["none"][0]
    assert found["settling"][1] < found["none"][1] - 0.1
    for name in found:
        numbers, accuracy = found[name][2].numbers, found[name][2].validation["accuracy"]
        assert accuracy > 0.85, name
        assert (set(numbers) >= {"penalty", "spikes", "unsettled"}) == (name != "none"), "told as numbers of their own"
    assert found["spikes"][2].numbers["penalty"] == pytest.approx(3e-3 * found["spikes"][2].numbers["spikes"], rel=1e-4)


@pytest.mark.parametrize("code", [3, 5])
def test_the_snn_and_its_trajectory_take_the_same_initial_codes(code):
    """Codes of layers that have negative ones do not count: tracers start at 0 there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    qann = quantize(capture(model, x), 4, x, layer_levels={"3.neuron": 16})
    assert {q.levels for q in qann.modules() if isinstance(q, Quantizer)} == {Levels(0, 3), Levels(-8, 7)}
    for takes in (lambda: spike(qann, initial_code=code), lambda: unroll(qann, 2, initial_code=code)):
        with nullcontext() if code == 3 else pytest.raises(StageError, match=r"initial_code=5 .*the highest is 3"):
            takes()


def test_what_is_refused():
    with pytest.raises(RecipeError, match=r"weights=\(\)"):
        Trajectory(())
    for code in (-2, 0.5, True):
        with pytest.raises(RecipeError, match=r"initial_code=.*a whole number, 0 or more"):
            Trajectory((0, 1), initial_code=code)
    with pytest.raises(RecipeError, match=r"may be more than are trained\. Use Even\(2\)"):
        Trajectory((0, 1), Constant())
    with pytest.raises(RecipeError, match="nothing would be trained"):
        Trajectory((0, 0))
    with pytest.raises(StageError, match="whole number of steps"):
        unroll(residual(), 0)
    with pytest.raises(StageError, match=r"initial_code=8 is above all codes of layers without .*; the highest is 7"):
        Trajectory((0, 1), initial_code=8).module(residual())
    with pytest.raises(StageError, match=r"initial_code=-1: .*0 or more"):
        unroll(residual(), 2, initial_code=-1)
    with pytest.raises(StageError, match="Call quantize"):
        finetune(nn.Linear(2, 2), TensorBatches(torch.zeros(4, 2), torch.zeros(4).long()), Plan(Trajectory((1,))))
    recipe = {"name": "a", "stage": "trajectory", "model": "spikezip:digits", "data": "digits"}
    with pytest.raises(RecipeError, match="needs 'steps'"):
        check_recipe(recipe)
    plan = check_recipe(
        {
            **recipe,
            "steps": [0, 1],
            "encoding": "even:2",
            "settled": 0.5,
            "bias_shares": "learned",
            "penalty": {"settling": 0.5},
        }
    ).plan()
    assert isinstance(plan.objective, Trajectory)
    assert (plan.objective.weights, plan.objective.encoding, plan.objective.settled) == ((0, 1), Even(2), 0.5)
    assert plan.objective.learn_bias_shares
    assert plan.objective.penalty == Penalty(settling=0.5)
    with pytest.raises(RecipeError, match="weight is a number, 0 or more"):
        Penalty(spikes=-1)
