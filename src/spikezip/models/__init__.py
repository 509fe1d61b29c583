"""Networks: those of the CIFAR literature that libraries lack, and one way to name any network.

:func:`resolve` finds ``spikezip:``, ``torchvision:``, ``timm:`` models and functions in a user's file.
"""

from spikezip.models.cifar_resnet import (
    BasicBlock,
    CifarResNet,
    PaddedShortcut,
    WideCifarResNet,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet56,
)
from spikezip.models.small import CifarVGG16, DigitsNet, digits, vgg16
from spikezip.models.source import MODELS, ModelSource, resolve
from spikezip.models.torchvision_ops import import_timm, import_torchvision
from spikezip.models.weights import load_weights

__all__ = [
    "MODELS",
    "BasicBlock",
    "CifarResNet",
    "CifarVGG16",
    "DigitsNet",
    "ModelSource",
    "PaddedShortcut",
    "WideCifarResNet",
    "digits",
    "import_timm",
    "import_torchvision",
    "load_weights",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet56",
    "resolve",
    "vgg16",
]
