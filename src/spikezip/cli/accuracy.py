"""What each stage of the road gets right, on images that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from spikezip.cli import screen

if TYPE_CHECKING:
    from spikezip.data import ImageData

_BATCH = 64


def answers(network: nn.Module, *inputs: Tensor) -> Tensor:
    """The first tensor that a network returns, however it returns it."""
    with torch.no_grad():
        return tree_leaves(network(*inputs))[0]


def too_few(answer: Sequence[int], data: ImageData) -> bool:
    """Whether an answer to one image, of this shape, is that of a classifier of fewer classes than the data has."""
    return len(answer) == 1 and answer[0] < data.num_classes


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images ``[N, C, H, W]`` whose greatest (first) output is their label."""
    right = 0
    for some, wanted in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
        right += int((answers(network, some).argmax(-1) == wanted).sum())
    return right / len(labels)


def tell(stages: Mapping[str, nn.Module], data: ImageData, split: str, most: int) -> None:
    """Print the accuracy of some networks, side by side, on at most so many images of a split; for 0, nothing."""
    if not most or not data.count(split):
        return
    images, labels = data.tensors(split, most)
    first = answers(next(iter(stages.values())), images[:1])
    if first.dim() != 2 or first.is_complex() or too_few(first.shape[1:], data):
        screen.note(
            f"No accuracy: {data.name} has {data.num_classes} classes, and this network gives {list(first.shape[1:])} "
            "an image, not one real number a class."
        )
        return
    with screen.working(f"classifying {len(labels)} images"):
        found = [f"{name} [bold]{100 * accuracy(net, images, labels):.1f} %[/]" for name, net in stages.items()]
    screen.say(f"Right on {len(labels)} images ({split}): {', '.join(found)}.")
