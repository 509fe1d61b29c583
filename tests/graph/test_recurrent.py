"""Recurrent layers of fixed length: captured as gates and steps, converted, equal to their QANN in every engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikezip.graph import capture, network
from spikezip.measure import verify
from spikezip.morph import morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, drift
from spikezip.spike import Even, spike

LENGTH, FEATURES, HIDDEN = 3, 3, 4
IMAGES = torch.randn(12, LENGTH, FEATURES, generator=torch.Generator().manual_seed(0))


class Looped(nn.Module):
    """A Python loop over a cell."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], HIDDEN)
        c = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(LENGTH):
            if isinstance(self.cell, nn.LSTMCell):
                h, c = self.cell(x[:, t], (h, c))
            else:
                h = self.cell(x[:, t], h)
        return self.head(h)


class Whole(nn.Module):
    """A recurrent layer of PyTorch; its sequence and its last states are read."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        ways = 2 if layer.bidirectional else 1
        self.head, self.last = nn.Linear(HIDDEN * ways, 2), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        y, state = self.layer(x)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(y[:, -1] if self.layer.batch_first else y[-1]) + self.last(state[0])


MODELS = {
    "LSTMCell": lambda: Looped(nn.LSTMCell(FEATURES, HIDDEN)),
    "GRUCell": lambda: Looped(nn.GRUCell(FEATURES, HIDDEN)),
    "RNNCell": lambda: Looped(nn.RNNCell(FEATURES, HIDDEN)),
    "RNNCell, ReLU, no bias": lambda: Looped(nn.RNNCell(FEATURES, HIDDEN, bias=False, nonlinearity="relu")),
    "LSTM": lambda: Whole(nn.LSTM(FEATURES, HIDDEN, batch_first=True)),
    "LSTM, projected": lambda: Whole(nn.LSTM(FEATURES, 6, proj_size=HIDDEN, batch_first=True)),
    "LSTM, projected, two layers both ways, no bias": lambda: Whole(
        nn.LSTM(FEATURES, 6, 2, bias=False, bidirectional=True, proj_size=HIDDEN, batch_first=True)
    ),
    "GRU, time first": lambda: Whole(nn.GRU(FEATURES, HIDDEN)),
    "RNN, no bias": lambda: Whole(nn.RNN(FEATURES, HIDDEN, bias=False, batch_first=True)),
    "RNN, two layers, both ways": lambda: Whole(
        nn.RNN(FEATURES, HIDDEN, 2, bidirectional=True, batch_first=True, dropout=0.5)
    ),
}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[name]().eval()


@pytest.mark.parametrize("name", MODELS)
def test_recurrent_networks_convert_and_are_equal(name):
    model = made(name)
    ann = capture(model, IMAGES[:1])
    with torch.no_grad():
        assert torch.allclose(ann(IMAGES), model(IMAGES), atol=1e-6)
    assert not any(network.op_name(n) in ("lstm", "gru", "rnn_tanh", "lstm_cell", "gru_cell") for n in ann.graph.nodes)
    qann = quantize(morph(ann), 16, IMAGES)
    snn = spike(qann)
    assert len(snn.layers) >= LENGTH  # neurons in every step, not one behind the whole
    assert verify(snn, IMAGES).require().equal
    whole = to_integer(qann)
    for engine in Engine:
        assert verify(spike(whole, Even(2)), IMAGES, engine=engine).require().equal
    assert drift(spike(whole), IMAGES, 8).none
    with torch.no_grad():
        assert float((snn.qann(IMAGES) - model(IMAGES)).abs().max()) < 0.25
