"""torch.compile takes QANNs, ensembles of paths and unrolled trajectories whole, and changes no result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spikezip import Even, Morph, capture, morph, quantize
from spikezip.train import Folded, InTurn, Rescaled, ensemble, unroll


class Net(nn.Module):
    """A residual block with a max-pool, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.max_pool2d(F.relu(self.second(x) + x), 2)
        return self.head(x.mean((2, 3)))


MADE: dict[str, Callable[[fx.GraphModule], nn.Module]] = {
    "QANN": lambda qann: qann,
    "PET, folded": lambda qann: ensemble(qann, (Rescaled(2), Rescaled(4)), Folded()),
    "PET, in turn": lambda qann: ensemble(qann, (Rescaled(2), Rescaled(4)), InTurn()),
    "trajectory": lambda qann: unroll(qann, 2, Even(2)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's compiler, about torch's own ways
@pytest.mark.parametrize("name", MADE)
def test_compiled_it_is_the_same(name: str):
    torch.manual_seed(0)
    x = torch.randn(6, 1, 8, 8)
    qann = quantize(morph(capture(Net().eval(), x), Morph()), 8, x)
    module = MADE[name](qann)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)  # no break, so no part is left to Python
    grads = []
    for run in (module, compiled):
        qann.zero_grad()
        run(x).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in qann.named_parameters() if p.grad is not None})
    torch.testing.assert_close(compiled(x), module(x))
    assert grads[0].keys() == grads[1].keys() == dict(qann.named_parameters()).keys()
    for parameter in grads[0]:
        torch.testing.assert_close(grads[1][parameter], grads[0][parameter], rtol=1e-4, atol=1e-5)
