"""Training on networks that came down the real road: captured, morphed, quantized."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from training_nets import residual_data

from spikezip.graph import network as graph_network
from spikezip.graph.capture import capture
from spikezip.graph.network import Stage
from spikezip.levels import Levels
from spikezip.morph import Morph, morph
from spikezip.quantize import Quantizer, quantize
from spikezip.spike.encoding import Even
from spikezip.train import (
    PET,
    QAT,
    AdamW,
    Capped,
    Folded,
    InTurn,
    Plan,
    Rescaled,
    TensorBatches,
    ensemble,
    paths_for,
    train,
)


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
