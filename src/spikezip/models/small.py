"""VGG-16 for CIFAR, and a network small enough to train on the embedded digits in seconds."""

from __future__ import annotations

from torch import Tensor, nn

from spikezip.models.cifar_resnet import BasicBlock, initialise


class CifarVGG16(nn.Module):
    """VGG-16 for 32x32 images: thirteen 3x3 convolutions with BatchNorm, five max-pools, one linear classifier.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.

    Shape: ``[B, in_channels, H, W] -> [B, num_classes]``, ``H, W >= 32``.

    Source: Simonyan and Zisserman, ICLR 2015, table 1 (D). Departs: BatchNorm, and one linear layer in place of
    three, as the literature on CIFAR does.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        for stage in ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)):
            for out_channels in (width * times for times in stage):
                conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(8 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class DigitsNet(nn.Module):
    """A residual network for the 8x8 digits: convolution, BatchNorm, max-pool, one residual block, linear.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.

    Shape: ``[B, in_channels, 8, 8] -> [B, num_classes]``. It has every kind of layer that a conversion has to get
    right, and reaches 98 to 99 % on the digits after 20 epochs, a few seconds on one CPU core.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.block = BasicBlock(32, 32)
        self.linear = nn.Linear(32 * 4 * 4, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.linear(x.flatten(1))


def vgg16(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> CifarVGG16:
    """VGG-16 for 32x32 images (14.7 M parameters)."""
    return CifarVGG16(num_classes, in_channels, width)


def digits(num_classes: int = 10, in_channels: int = 1) -> DigitsNet:
    """The network for the 8x8 digits (24 k parameters)."""
    return DigitsNet(num_classes, in_channels)
