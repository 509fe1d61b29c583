"""What each stage of the road gets right, on images that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from spikezip.cli import screen
from spikezip.graph import network
from spikezip.run.step import first_tensor, images_first
from spikezip.spike.swap import tracer_shape

if TYPE_CHECKING:
    from spikezip import SNN
    from spikezip.data import ImageData
    from spikezip.graph.network import Spec

_BATCH = 64


def answers(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The first tensor that a network returns, however it returns it."""
    with torch.no_grad():
        return first_tensor(model(*inputs))


class AtStep(nn.Module):
    """An SNN as a network that gives its answer at one step."""

    def __init__(self, snn: SNN, step: int):
        super().__init__()
        self._snn, self._step = snn, step

    def forward(self, images: Tensor) -> Tensor:
        return self._snn.run(images, self._step).answer


def too_few(answer: Sequence[int], data: ImageData) -> bool:
    """Whether an answer to one image, of this shape, is that of a classifier of fewer classes than the data has."""
    return len(answer) == 1 and answer[0] < data.num_classes


def accuracy(model: nn.Module, spec: Spec, images: Tensor, labels: Tensor) -> float:
    """The share of images ``[N, C, H, W]`` whose greatest (first) output, laid out as ``spec`` says, is their label."""
    right = 0
    for some, wanted in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        found = images_first(answers(model, some), spec, len(some))
        found = found.byte() if found.dtype is torch.bool else found
        right += int((found.argmax(-1) == wanted).sum())
    return right / len(labels)


def tell(stages: Mapping[str, nn.Module], qann: fx.GraphModule, data: ImageData, split: str, most: int) -> None:
    """Print the accuracy of some networks, side by side, on at most so many images of a split; for 0, nothing.

    ``qann`` is one of them, or made of one: all lay their outputs out alike.
    """
    if not most or not data.count(split):
        return
    images, labels = data.tensors(split, most)
    spec = network.spec(network.outputs(qann)[0])
    shape = tracer_shape(spec)
    if len(shape) != 1 or spec.dtype.is_complex or too_few(shape, data):
        screen.note(
            f"No accuracy: {data.name} has {data.num_classes} classes, and this network gives {list(shape)} "
            "an image, not one real number a class."
        )
        return
    with screen.working(f"classifying {len(labels)} images"):
        right = {name: screen.percent(accuracy(net, spec, images, labels)) for name, net in stages.items()}
    found = [f"{name} [bold]{share}[/]" for name, share in right.items()]
    screen.say(f"Right on {len(labels)} images ({split}): {', '.join(found)}.")
