"""Training on networks that came down the real road: captured, morphed, quantized."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from training_nets import residual_data, same

from spikezip.errors import StageError
from spikezip.graph import network as graph_network
from spikezip.graph.capture import capture
from spikezip.graph.network import Stage
from spikezip.levels import Levels
from spikezip.measure import verify
from spikezip.morph import BatchNorm, Morph, Residual, morph
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.spike import Even, spike
from spikezip.train import (
    PET,
    QAT,
    SGD,
    AdamW,
    Capped,
    EpochDone,
    Folded,
    InTurn,
    PathScale,
    Plan,
    Rescaled,
    TensorBatches,
    ensemble,
    paths_for,
    train,
)
from spikezip.train.checkpoint import read


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.head(torch.max_pool2d(x, 2).flatten(1))


class Windows(nn.Module):
    """Merges the batch with rows, as windowed attention does, reads its size, and adds an embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(32, 4)
        self.place = nn.Parameter(torch.randn(1, 4, 8) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = torch.relu(self.embed(x.reshape(batch, 4, 4)) + self.place.expand(batch, -1, -1))
        x = torch.relu(self.mix(x.reshape(batch * 4, 8)))
        scores = torch.softmax(x.view(batch, 4, 8) @ x.view(batch, 4, 8).transpose(1, 2), -1)
        return self.head((scores @ x.view(batch, 4, 8)).reshape(batch, -1))


@cache
def qann(kind: type[nn.Module]) -> fx.GraphModule:
    torch.manual_seed(0)
    images, _ = next(residual_data().batches("train", 64))
    model = kind()
    model(images)  # so that BatchNorm has statistics to fold
    return quantize(morph(capture(model, images[:2]), Morph()), Levels.unsigned(8), images)


@pytest.mark.parametrize("kind", [Convolutional, Windows])
def test_folded_and_in_turn_agree_on_captured_networks(kind: type[nn.Module]):
    network = graph_network.fork(qann(kind)).double()
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    towards = torch.randn(3, 5, 4, dtype=torch.float64)
    results = []
    for execution in (Folded(), InTurn()):
        network.zero_grad()
        logits = ensemble(network, [Capped(2), Rescaled(4)], execution)(images)
        (logits * towards).sum().backward()
        results.append((logits.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[0][0][0], network(images).detach(), rtol=0, atol=1e-10)
    assert len(results[0][1]) == len(list(network.parameters()))
    for folded, in_turn in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(folded, in_turn, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", [Convolutional, Windows])
@pytest.mark.parametrize("objective", [QAT(), PET(paths_for(Even(7), Levels(0, 7)))], ids=["qat", "pet"])
def test_a_qann_trains_and_stays_one(kind: type[nn.Module], objective: QAT | PET):
    network = qann(kind)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    data: TensorBatches = residual_data(400, 100)
    done = train(network, data, Plan(objective, epochs=12, batch=20, optimizer=AdamW(0.005)))
    assert done.history[-1].validation["loss"] < done.history[0].validation["loss"]
    assert done.history[-1].validation["accuracy"] > 0.7
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    trained = done.network
    assert isinstance(trained, fx.GraphModule)
    graph_network.expect(trained, Stage.QANN, "spike")
    assert graph_network.note(trained, "fine_tuning") == type(objective).__name__.lower()
    assert [n for n, m in trained.named_modules() if isinstance(m, Quantizer)] == [
        n for n, m in network.named_modules() if isinstance(m, Quantizer)
    ]
    assert all(node.meta.get("spec") is not None for node, _ in graph_network.modules_of(trained, Quantizer))


@pytest.mark.parametrize("execution", [Folded(), InTurn()], ids=["folded", "in-turn"])
@pytest.mark.parametrize("residual", [Residual.VANILLA, Residual.RCR], ids=str)
def test_live_batch_norm_trains_and_is_folded_at_the_end(execution: Folded | InTurn, residual: Residual):
    torch.manual_seed(0)
    data = residual_data(400, 100)
    images, _ = next(data.batches("train", 300))
    ann, choice = capture(Convolutional(), images[:2]), Morph(residual=residual, batch_norm=BatchNorm.LIVE)
    live = quantize(morph(ann, choice), Levels.unsigned(8), images)
    for verb, call in (("spike", spike), ("to_integer", to_integer)):
        with pytest.raises(StageError, match=rf"'bn1' \(BatchNorm2d\) is a live BatchNorm.*{verb}\(\).*finetune"):
            call(live)
    plan = Plan(PET((Capped(1), Capped(2)), execution=execution), epochs=5, batch=20, optimizer=AdamW(0.005))
    done = train(live, data, plan)
    assert done.history[-1].validation["accuracy"] > 0.7
    trained = done.network
    assert isinstance(trained, fx.GraphModule)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trained.modules())
    assert verify(spike(trained, Even(3)), images[:40]).equal
    # The main path's running statistics are what is folded: the QANN that training validated is the QANN that is left.
    held_out, labels = next(data.batches("val", 100))
    accuracy = float((trained(held_out).argmax(-1) == labels).float().mean())
    assert accuracy == pytest.approx(done.history[-1].validation["accuracy"], abs=0.011)
    folded = quantize(morph(ann, Morph(residual=residual)), Levels.unsigned(8), images)
    assert trained.state_dict().keys() == folded.state_dict().keys(), "other stages can start from it"


def test_killed_with_private_state_and_resumed_gives_the_same_bits(tmp_path: Path):
    images, _ = next(residual_data().batches("train", 64))
    torch.manual_seed(0)
    live = quantize(morph(capture(Convolutional(), images[:2]), Morph(batch_norm=BatchNorm.LIVE)), 8, images)
    objective = PET((Capped(1), Capped(2)), scale=PathScale.FREE)
    plan = Plan(objective, epochs=4, batch=20, optimizer=AdamW(0.005), clip=1.0)

    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(live, residual_data(), plan, out=tmp_path / "cut", on_event=stop)
    resumed = train(live, residual_data(), plan, out=tmp_path / "cut", resume=True)
    whole = train(live, residual_data(), plan, out=tmp_path / "whole")
    assert same(resumed.network, whole.network)
    assert resumed.history[-1].validation == whole.history[-1].validation
    first, second = (read(tmp_path / run / "checkpoint.safetensors").tensors for run in ("cut", "whole"))
    assert sum(n.startswith("objective/") and "running_mean" in n for n in first) == 4, "two paths, two BatchNorms"
    scales = [n for n in first if n.startswith("optimizer/exp_avg/objective/") and n.endswith(".scale")]
    assert len(scales) == 4, "two paths, two quantizers"
    assert all(torch.equal(t, second[n]) for n, t in first.items())


def test_free_scales_are_trained_and_dropped():
    network, data = qann(Convolutional), residual_data(400, 100)
    answers = {}
    for scale in PathScale:
        plan = Plan(PET((Rescaled(2), Rescaled(4)), scale=scale), epochs=3, batch=20, optimizer=AdamW(0.005))
        trained = train(network, data, plan).network
        assert trained.state_dict().keys() == network.state_dict().keys()
        answers[scale] = [float(m.scale.detach()) for m in trained.modules() if isinstance(m, Quantizer)]
    assert answers[PathScale.SHARED] != answers[PathScale.FREE]
    module = PET((Rescaled(2),), scale=PathScale.FREE).module(network)
    groups = Plan(optimizer=AdamW(0.005, scale_rate=0.5)).groups(network, module)
    assert [(len(g["params"]), g["lr"]) for g in groups][-1] == (4, 0.0025), "all scales have the scales' rate"


def test_weights_decay_and_a_batch_norm_that_stands_alone_does_not():
    class PreActivated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)
            self.wide, self.head = nn.Linear(16, 1), nn.Linear(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv1(x)
            h = self.conv2(torch.relu(self.bn(h)) + h)
            return self.head(torch.relu(self.wide(h.flatten(1))))

    network = qann(PreActivated)
    names = {id(p): name for name, p in network.named_parameters()}
    for optimizer in (SGD(), AdamW()):
        groups = Plan(optimizer=optimizer).groups(network)
        decayed, kept, _ = ([names[id(p)] for p in group["params"]] for group in groups)
        assert set(decayed) == {"conv1.weight", "conv2.weight", "wide.weight", "head.weight"}
        assert len([name for name in kept if name.startswith("bn.")]) == 2


def test_rerouted_with_live_batch_norm_the_neurons_sit_where_they_do_without():
    class Projected(Convolutional):
        def __init__(self):
            super().__init__()
            self.between, self.short, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(torch.relu(self.between(x)))) + self.norm(self.short(x)))
            return self.head(torch.max_pool2d(x, 2).flatten(1))

    torch.manual_seed(0)
    images, _ = next(residual_data().batches("train", 64))
    model = Projected()
    model(images)
    ann, found = capture(model, images[:2]), []
    for batch_norm in BatchNorm:
        qann = quantize(morph(ann, Morph(residual=Residual.RCR, batch_norm=batch_norm)), 8, images)
        found.append((qann, [m.levels for _, m in graph_network.modules_of(qann, Quantizer)]))
    assert found[0][1] == found[1][1]
    assert found[0][1].count(Levels(-4, 3)) == 1, "the shortcut's own"
    torch.testing.assert_close(found[0][0](images), found[1][0](images), rtol=0, atol=1e-5)
