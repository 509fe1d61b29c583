"""Recurrent layers as the feed-forward graphs that they are for a sequence of fixed length.

``torch.export`` leaves ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells as one operation each, whose products no
neuron could feed. These decompositions write out gates and time steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_aten = torch.ops.aten
_Cell = Callable[..., tuple[Tensor, ...]]


def lstm_cell(x: Tensor, state: Sequence[Tensor], *weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """``i, f, g, o = W x + U h + b``; ``c' = s(f) c + s(i) tanh(g)``; ``h' = s(o) tanh(c')``.

    Source: Hochreiter and Schmidhuber, Neural Computation 1997; gates in PyTorch's order.
    """
    hidden, cell = state
    i, f, g, o = _gates(x, hidden, *weights).chunk(4, 1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def _projected(x: Tensor, state: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM whose hidden state is projected, ``h' = P (s(o) tanh(c'))`` (Sak et al., Interspeech 2014)."""
    *own, projection = weights
    hidden, cell = lstm_cell(x, state, *own)
    return F.linear(hidden, projection), cell


def gru_cell(x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Tensor:
    """``r, z`` from ``s(W x + U h + b)``; ``n = tanh(W x + b + r (U h + b'))``; ``h' = n + z (h - n)``.

    Source: Cho et al., EMNLP 2014, as in PyTorch (the reset gate behind the product).
    """
    w_ih, w_hh, b_ih, b_hh = _four(weights)
    r, z, n = _linear(x, w_ih, b_ih).chunk(3, 1)
    r_h, z_h, n_h = _linear(hidden, w_hh, b_hh).chunk(3, 1)
    reset, update = torch.sigmoid(r + r_h), torch.sigmoid(z + z_h)
    new = torch.tanh(n + reset * n_h)
    return new + update * (hidden - new)


def tanh_cell(x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Tensor:
    """``h' = tanh(W x + U h + b)`` (Elman, Cognitive Science 1990)."""
    return torch.tanh(_gates(x, hidden, *weights))


def relu_cell(x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Tensor:
    """``h' = relu(W x + U h + b)``."""
    return torch.relu(_gates(x, hidden, *weights))


def _four(weights: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    w_ih, w_hh, b_ih, b_hh = [*weights, None, None][:4]
    assert w_ih is not None and w_hh is not None
    return w_ih, w_hh, b_ih, b_hh


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _gates(x: Tensor, hidden: Tensor, *weights: Tensor | None) -> Tensor:
    w_ih, w_hh, b_ih, b_hh = _four(weights)
    return _linear(x, w_ih, b_ih) + _linear(hidden, w_hh, b_hh)


def _lstm(
    x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    both: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    starts = list(zip(hx[0].unbind(0), hx[1].unbind(0)))
    each = len(weights) // len(starts)
    cell = lstm_cell if each == (4 if biases else 2) else _projected
    y, ends = _layers(cell, x, starts, weights, each, layers, both, batch_first)
    return y, torch.stack([h for h, _ in ends]), torch.stack([c for _, c in ends])


def _plain(cell: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def decomposition(
        x: Tensor, hx: Tensor, weights: Sequence[Tensor], biases: bool, layers: int, dropout: float, train: bool,
        both: bool, batch_first: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        def step(x: Tensor, state: Sequence[Tensor], *own: Tensor) -> tuple[Tensor, ...]:
            return (cell(x, state[0], *own),)

        starts = [(h,) for h in hx.unbind(0)]
        y, ends = _layers(step, x, starts, weights, len(weights) // len(starts), layers, both, batch_first)
        return y, torch.stack([h for (h,) in ends])

    return decomposition


def _layers(
    cell: _Cell, x: Tensor, starts: Sequence[tuple[Tensor, ...]], weights: Sequence[Tensor], each: int, layers: int,
    both: bool, batch_first: bool,
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:  # fmt: skip
    time = 1 if batch_first else 0
    sequence, ends = list(x.unbind(time)), []
    for layer in range(layers):
        ways = []
        for way in range(2 if both else 1):
            number = layer * (2 if both else 1) + way
            own, state, outputs = weights[number * each : (number + 1) * each], starts[number], []
            for step in sequence[::-1] if way else sequence:
                state = cell(step, state, *own)
                outputs.append(state[0])
            ways.append(outputs[::-1] if way else outputs)
            ends.append(state)
        sequence = [torch.cat(parts, 1) for parts in zip(*ways)] if both else ways[0]
    return torch.stack(sequence, time), ends


def _cell(cell: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, hx, w_ih, w_hh, b_ih=None, b_hh=None: cell(x, hx, w_ih, w_hh, b_ih, b_hh)


#: For ``ExportedProgram.run_decompositions``.
RECURRENT: dict[Any, Callable[..., Any]] = {
    _aten.lstm_cell.default: _cell(lstm_cell),
    _aten.gru_cell.default: _cell(gru_cell),
    _aten.rnn_tanh_cell.default: _cell(tanh_cell),
    _aten.rnn_relu_cell.default: _cell(relu_cell),
    _aten.lstm.input: _lstm,
    _aten.gru.input: _plain(gru_cell),
    _aten.rnn_tanh.input: _plain(tanh_cell),
    _aten.rnn_relu.input: _plain(relu_cell),
}
