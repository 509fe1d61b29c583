"""Weights of few bits, rounded one after the other so that each makes up for those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network, ops
from spikezip.quantize.calibrate import run_abreast
from spikezip.quantize.grid import channels_back
from spikezip.quantize.refit import divided, enough, parted
from spikezip.quantize.units import Rounded, nearest
from spikezip.quantize.windows import Windows

_DAMPED = 0.01  #: of the inputs' mean square, added to each
_WIDEST = 6144  #: weights of a channel; of more (a VGG's first linear layer) the moments fill memory
_BLOCK = 128  #: weights after which the others learn what was lost


@torch.no_grad()
def feed_back(gm: fx.GraphModule, rounded: Mapping[fx.Node, Rounded], data: list[tuple[Tensor, ...]]) -> None:
    """Round the weights of each layer anew, in place, on what the integer layers before hand over.

    Rounding to the nearest step is best for each weight alone, not for their sum: of inputs that go together, one
    weight's loss can be another's gain. So a layer's weights are rounded in order, and what each loses is put into
    those still to come, as well as the inputs' second moments allow; the bias, whose steps are finer, comes last. A
    quarter of the images, left out, says of each output channel whether it has gained; if not, it stays as it was.

    Args:
        gm: an integer network with its weights rounded to the nearest steps.
        rounded: what these were before, by layer.
        data: calibration data, as tuples of inputs.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR
    2023, in the form of Babai's nearest plane (Combinatorica 1986), which gives the same weights. Departs: steps are
    powers of two; the bias takes part; held-out images judge.
    """
    chunks = divided(data)

    def visit(node: fx.Node, environments: Sequence[dict[fx.Node, Any]]) -> None:
        weight = network.constant(ops.weight_of(node)) if node in rounded else None
        windows = Windows.of(node, weight) if weight is not None else None
        if weight is not None and windows is not None:
            (stream,) = ops.data_operands(node)
            _round(node, weight, windows, rounded[node], [environment[stream] for environment in environments])

    run_abreast(gm, chunks, visit)


def _round(node: fx.Node, weight: Tensor, windows: Windows, before: Rounded, inputs: list[Tensor]) -> None:
    index = ops.bias_index(node)
    bias = network.constant(node.args[index]) if index is not None else None
    exact = before.weight.flatten(1)
    channels, unknowns = exact.shape
    steps = before.step.reshape(-1, 1).expand_as(exact)
    most = torch.full_like(exact, before.most)
    if bias is not None:
        if before.bias is None or before.fine is None or before.bias.numel() != channels:
            return
        exact = torch.cat([exact, before.bias.reshape(-1, 1)], 1)
        steps = torch.cat([steps, before.fine.expand(channels).reshape(-1, 1)], 1)
        most = torch.cat([most, torch.full_like(most[:, :1], torch.inf)], 1)
    fitted, judging = parted(inputs)
    if unknowns > _WIDEST or not judging:  # so few images prove nothing
        return
    equations = network.spec(node).numel // channels * len(inputs[0])
    known, unseen = (
        torch.stack([windows.products(_single(x), one=bias is not None) for x in part]).double().sum(0)
        for part in (enough(fitted, equations, unknowns), judging)
    )
    if not bool(torch.isfinite(known).all() & torch.isfinite(unseen).all()):
        return
    exact, steps, most = (v.unflatten(0, (windows.groups, -1)) for v in (exact, steps, most))
    each, fed = nearest(exact, steps, most), _in_order(exact, steps, most, known)

    def lost(values: Tensor) -> Tensor:
        return (((values - exact) @ unseen) * (values - exact)).sum(-1, keepdim=True)

    best = torch.where(lost(fed) < lost(each), fed, each).flatten(0, 1)
    weight.copy_(channels_back(node, best[:, :unknowns].reshape(before.weight.shape)).reshape(weight.shape))
    if bias is not None:
        bias.copy_(best[:, -1].reshape(bias.shape))


def _single(x: Tensor) -> Tensor:
    """At least single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _in_order(exact: Tensor, steps: Tensor, most: Tensor, products: Tensor) -> Tensor:
    """``[groups, output channels, values]`` rounded, by the sums of the products of what they multiply.

    With ``products = R R^T``, ``R`` upper triangular, what is lost by ``d = found - exact`` is ``|R^T d|^2``, and its
    entry i depends on the values up to i alone: each is rounded to the nearest step from where that entry is 0.
    """
    squares = products.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    damped = products + torch.diag_embed((_DAMPED * squares).clamp(min=1e-12).expand(-1, products.shape[1]))
    factor = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2)
    found, passed_on, count = torch.empty_like(exact), torch.zeros_like(exact), exact.shape[-1]
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        for i in range(first, last):
            wanted = exact[..., i] - passed_on[..., i] / factor[:, i, i, None]
            found[..., i] = nearest(wanted, steps[..., i], most[..., i])
            lost = found[..., i] - exact[..., i]
            passed_on[..., i:last] += lost[..., None] * factor[:, None, i, i:last]
        passed_on[..., last:] += (found - exact)[..., first:last] @ factor[:, first:last, last:]
    return found
