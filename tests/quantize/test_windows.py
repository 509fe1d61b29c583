"""The sums of products of what weights are multiplied by, against the operations themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikezip import capture
from spikezip.graph import network, ops
from spikezip.quantize.windows import Windows


class _Product(nn.Module):
    def __init__(self, *shape: int, added: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.bias = nn.Parameter(torch.randn(shape[-1])) if added else None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


SEEN = {
    "linear": (nn.Linear(6, 5), (7, 6)),
    "tokens without bias": (nn.Linear(6, 5, bias=False), (3, 4, 6)),
    "product": (_Product(6, 5), (3, 4, 6)),
    "sum and product": (_Product(6, 5, added=True), (7, 6)),
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 7, 5)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1), bias=False), (3, 4, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=2), (3, 4, 7, 5)),
    "one pixel": (nn.Conv2d(4, 6, 1), (40, 4, 6, 6)),
    "series": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (3, 4, 11)),
}
UNSEEN = {
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (3, 4, 5, 5)),
    "volume": (nn.Conv3d(2, 3, 2), (3, 2, 4, 4, 4)),
    "stacked": (_Product(3, 6, 5), (2, 3, 4, 6)),
    "as large as the input": (nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 7, 5)),
}


def _layer(module: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64)
    graph = capture(module.double().eval(), x[:2])
    (node,) = [n for n in graph.graph.nodes if n.op == "call_function" and ops.weight_of(n) is not None]
    weight = network.constant(ops.weight_of(node))
    index = ops.bias_index(node)
    return x, node, [weight] if index is None else [weight, network.constant(node.args[index])]


@pytest.mark.parametrize("kind", SEEN)
def test_products_are_what_the_layer_does_twice(kind: str):
    """A direction, through the layer and back, is the direction times the sums of products."""
    module, shape = SEEN[kind]
    x, node, stored = _layer(module, shape)
    windows = Windows.of(node, stored[0])
    assert windows is not None
    direction = [torch.randn_like(v).requires_grad_() for v in stored]
    outputs = torch.func.functional_call(module, dict(zip([n for n, _ in module.named_parameters()], direction)), x)
    back = torch.autograd.grad((outputs.square() / 2).sum(), direction)
    dim = ops.out_channel_dim(node)

    def rows(values: list[Tensor]) -> Tensor:
        whole = torch.cat([v.movedim(dim, 0).flatten(1) if v.dim() > 1 else v.unsqueeze(1) for v in values], 1)
        return whole.unflatten(0, (windows.groups, -1)).detach()

    products = windows.products(x, one=len(stored) > 1)
    assert torch.allclose(rows(direction) @ products, rows(back), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", UNSEEN)
def test_other_layers_are_left_to_their_operation(kind: str):
    module, shape = UNSEEN[kind]
    _, node, stored = _layer(module, shape)
    assert Windows.of(node, stored[0]) is None
