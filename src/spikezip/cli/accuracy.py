"""What each stage of the road gets right, on images that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spikezip.cli import screen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spikezip.data import ImageData

_BATCH = 64


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images ``[N, C, H, W]`` whose greatest (first) output is their label."""
    import torch

    right = 0
    with torch.no_grad():
        for some, wanted in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            found = network(some)
            right += int(((found[0] if isinstance(found, tuple) else found).argmax(-1) == wanted).sum())
    return right / len(labels)


def tell(stages: Mapping[str, nn.Module], data: ImageData, split: str, most: int) -> None:
    """Print the accuracy of some networks, side by side, on at most so many images of a split; for 0, nothing."""
    if not most or not data.count(split):
        return
    images, labels = data.tensors(split, most)
    with screen.working(f"classifying {len(labels)} images"):
        found = [f"{name} [bold]{100 * accuracy(net, images, labels):.1f} %[/]" for name, net in stages.items()]
    screen.say(f"Right on {len(labels)} images ({split}): {', '.join(found)}.")
