"""The residual networks of the CIFAR literature, which torchvision and timm do not have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def initialise(module: nn.Module) -> None:
    """He initialisation of every convolution, in place (He et al., ICCV 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class PaddedShortcut(nn.Module):
    """A shortcut without weights ("option A"): every second pixel, and channels of zeros on both sides.

    Args:
        added: channels to add, an even number.

    Shape: ``[B, C, H, W] -> [B, C + added, ceil(H/2), ceil(W/2)]``.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, sec. 4.2.
    """

    def __init__(self, added: int):
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        half = self.added // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution.
        shortcut: what the other branch does, or None where it is the identity.

    Source: He et al., CVPR 2016, fig. 5 (left).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # The name is torchvision's, so that state dicts of either origin carry the same keys.
        self.downsample = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images as He et al. drew it for CIFAR: 16-32-64 channels, shortcuts without weights.

    Args:
        blocks: residual blocks in each of the three stages; the network has ``6 * blocks + 2`` layers.
        num_classes: outputs.
        in_channels: channels of the images.

    Shape: ``[B, in_channels, H, W] -> [B, num_classes]``. The state dict's names are those of
    akamaster/pytorch_resnet_cifar10 (``conv1, bn1, layer1.0.conv1, ..., linear``).

    Source: He et al., CVPR 2016, sec. 4.2.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        initialise(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
        if in_channels == out_channels:
            first = BasicBlock(in_channels, out_channels)
        else:
            first = BasicBlock(in_channels, out_channels, stride=2, shortcut=PaddedShortcut(out_channels - in_channels))
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


class WideCifarResNet(nn.Module):
    """The ImageNet ResNet made to fit 32x32 images: 3x3 first convolution, no max-pool, 64-128-256-512 channels.

    Args:
        blocks: residual blocks in each of the four stages.
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the first stage; each later one has twice as many.

    Shape: ``[B, in_channels, H, W] -> [B, num_classes]``. Names are torchvision's.

    Source: He et al., CVPR 2016, table 1, with the stem that the spiking literature uses on CIFAR.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 10, in_channels: int = 3, width: int = 64):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(width, width, blocks[0], 1)
        self.layer2 = self._stage(width, 2 * width, blocks[1], 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks[2], 2)
        self.layer4 = self._stage(4 * width, 8 * width, blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        initialise(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or in_channels != out_channels:
            project = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            shortcut = nn.Sequential(project, nn.BatchNorm2d(out_channels))
        first = BasicBlock(in_channels, out_channels, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-20 for 32x32 images (0.27 M parameters).

    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return CifarResNet(3, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-32 for 32x32 images (0.46 M parameters)."""
    return CifarResNet(5, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-44 for 32x32 images (0.66 M parameters)."""
    return CifarResNet(7, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """ResNet-56 for 32x32 images (0.85 M parameters)."""
    return CifarResNet(9, num_classes, in_channels)


def resnet18(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> WideCifarResNet:
    """ResNet-18 for 32x32 images (11.2 M parameters)."""
    return WideCifarResNet((2, 2, 2, 2), num_classes, in_channels, width)


def resnet34(num_classes: int = 10, in_channels: int = 3) -> WideCifarResNet:
    """ResNet-34 for 32x32 images (21.3 M parameters)."""
    return WideCifarResNet((3, 4, 6, 3), num_classes, in_channels)
