"""A model with what one has to know to use it, and the function that finds it by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike

import torch
from torch import Tensor, nn

from spikezip.data.root import data_root
from spikezip.errors import CaptureError, DataError, UnknownNameError
from spikezip.models import cifar_resnet, libraries, small
from spikezip.models.userfile import build_from_file
from spikezip.models.weights import load_weights, pixels_in

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSource:
    """A model, an input it takes, and how that input has to be normalised.

    Args:
        name: the specification it was found by.
        module: the model, in evaluation mode.
        example: an input, a tensor ``[2, C, H, W]`` (or whatever the user's function returned beside the model).
        mean: per channel, subtracted from images in ``[0, 1]``; None if the model does not say.
        std: per channel, divides them; None if the model does not say.
        new_classifier: whether its classifier is random, as its weights are for another number of classes.
    """

    name: str
    module: nn.Module
    example: Tensor | tuple[Tensor, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    new_classifier: bool = False


@dataclass(frozen=True)
class _Entry:
    build: Callable[[int, int], nn.Module]
    size: int
    channels: int = 3
    pretrained: str | None = None  # a file in the data root


MODELS: dict[str, _Entry] = {
    "digits": _Entry(small.digits, 8, channels=1),
    "resnet18": _Entry(cifar_resnet.resnet18, 32),
    "resnet20": _Entry(cifar_resnet.resnet20, 32, pretrained="cifar10_resnet20.safetensors"),
    "resnet32": _Entry(cifar_resnet.resnet32, 32, pretrained="cifar10_resnet32.safetensors"),
    "resnet34": _Entry(cifar_resnet.resnet34, 32),
    "resnet44": _Entry(cifar_resnet.resnet44, 32, pretrained="cifar10_resnet44.safetensors"),
    "resnet56": _Entry(cifar_resnet.resnet56, 32, pretrained="cifar10_resnet56.safetensors"),
    "vgg16": _Entry(small.vgg16, 32),
}

_SPECS = "timm:NAME, torchvision:NAME, spikezip:NAME or path/to/file.py:function"


def resolve(
    spec: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | PathLike[str] | None = None,
    new_classifier: bool = False,
    example_shape: tuple[int, ...] | None = None,
    root: str | PathLike[str] | None = None,
) -> ModelSource:
    """Find a model by name and build it.

    Args:
        spec: ``spikezip:NAME`` (see ``MODELS``), ``torchvision:NAME``, ``timm:NAME``, or ``path/to/file.py:function``
            where the function takes no arguments and returns a module, or a module and an example input.
        num_classes: outputs; by default what the model has (10, or 1000 for ImageNet models).
        in_channels: channels of the images; by default what the model has.
        weights: a ``.safetensors`` file, loaded strictly (what ``train`` writes says how pixels are to be normalised),
            or ``"pretrained"``: the library's own weights (fetched over the network), or for
            ``spikezip:resnet20/32/44/56`` the CIFAR-10 weights in the data root. By default the weights are random.
        new_classifier: where the weights are for another number of classes, leave the classifier random, to be trained
            on other data. By default such weights do not fit.
        example_shape: ``(C, H, W)`` of one image; by default what the model was made for.
        root: where pretrained weights of ``spikezip:`` models lie; by default ``SPIKEZIP_DATA``.

    Returns:
        The model in evaluation mode, with an example input and the normalisation it expects.

    Raises:
        UnknownNameError: no such model; near matches are told.
        CaptureError: the user's file or function is missing or fails, the model cannot be built as asked, or a
            library's does not take images of ``example_shape``.
        BundleError: the weights do not fit, hold NaN, or are not safetensors.
        DataError: pretrained weights cannot be found or fetched.

    >>> found = resolve("spikezip:digits")
    >>> found.module(found.example).shape
    torch.Size([2, 10])
    """
    _check_request(num_classes, in_channels, example_shape)
    kind, _, name = spec.partition(":")
    pretrained = weights is not None and str(weights) == "pretrained"
    new = num_classes if new_classifier else None
    if kind == "spikezip":
        source = _own(spec, name, num_classes, in_channels, pretrained, new, root)
    elif kind in ("torchvision", "timm"):
        if kind == "torchvision":
            built = libraries.torchvision_model(name, num_classes, in_channels, pretrained, new)
        else:
            built = libraries.timm_model(name, num_classes, in_channels, pretrained)
        source = ModelSource(spec, built.module, _example(built.shape), built.mean, built.std, built.new_classifier)
    elif spec.endswith(".py") or ".py:" in spec:
        source = _from_file(spec, num_classes, in_channels, pretrained, example_shape)
    else:
        known = {f"spikezip:{n}" for n in MODELS}
        if ":" in spec or spec not in MODELS:
            raise UnknownNameError(f"model (give {_SPECS})", spec, known)
        raise UnknownNameError(f"model (give {_SPECS})", spec, {f"spikezip:{spec}"})
    if weights is not None and not pretrained:
        source = replace(source, new_classifier=load_weights(source.module, weights, new_classes=new))
        if not source.new_classifier and (pixels := pixels_in(weights)):
            source = replace(source, mean=pixels[0], std=pixels[1])
    source.module.eval()
    if example_shape is not None:
        usual, example = source.example, _example(example_shape)
        source = replace(source, example=example)
        if kind in ("spikezip", "torchvision", "timm") and isinstance(usual, Tensor) and usual.shape != example.shape:
            _check_size(source, example, usual)
    return source


def _check_request(num_classes: int | None, in_channels: int | None, example_shape: tuple[int, ...] | None) -> None:
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise CaptureError(f"{what}={value} is not a number of {what.split('_')[1]}; give 1 or more.")
    if example_shape is not None and (not example_shape or min(example_shape) < 1):
        raise CaptureError(
            f"example_shape={example_shape} is not the shape of an image; give (C, H, W), without the batch."
        )


@torch.no_grad()
def _check_size(source: ModelSource, example: Tensor, usual: Tensor) -> None:
    """Raise CaptureError where a library's model does not take images of another size than its usual one."""
    try:
        source.module(example)
    except Exception as error:  # each library raises what it likes
        asked, made = ("x".join(map(str, x.shape[1:])) for x in (example, usual))
        raise CaptureError(
            f"{source.name} does not take images of {asked}: {str(error).rstrip('.')}. It was made for {made}: leave "
            "out the size that was asked for."
        ) from error


def _example(shape: tuple[int, ...]) -> Tensor:
    # Two images, as torch.export takes a batch of one for a constant; drawn, as zeros would hide differences.
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), device="cpu")


def _own(
    spec: str,
    name: str,
    num_classes: int | None,
    in_channels: int | None,
    pretrained: bool,
    new_classes: int | None,
    root: str | PathLike[str] | None,
) -> ModelSource:
    if name not in MODELS:
        raise UnknownNameError("spikezip model", name, MODELS)
    entry = MODELS[name]
    channels = in_channels or entry.channels
    module = entry.build(num_classes or 10, channels)
    example = _example((channels, entry.size, entry.size))
    if not pretrained:
        return ModelSource(spec, module, example)
    if entry.pretrained is None:
        raise UnknownNameError("pretrained spikezip model", name, [n for n, e in MODELS.items() if e.pretrained])
    folder = data_root(root)
    if folder is None or not (folder / entry.pretrained).is_file():
        looked = f"in {folder}" if folder else "anywhere: SPIKEZIP_DATA is not set"
        raise DataError(
            f"The weights {entry.pretrained} of {spec} are not {looked}. Point SPIKEZIP_DATA (or root=) at the folder"
            " that holds them, or give weights= a .safetensors file."
        )
    new = load_weights(module, folder / entry.pretrained, new_classes=new_classes)
    if num_classes not in (None, 10):  # to be trained on other data, which have statistics of their own
        return ModelSource(spec, module, example, new_classifier=new)
    # The weights' author trained on CIFAR-10 with ImageNet's statistics.
    return ModelSource(spec, module, example, IMAGENET_MEAN, IMAGENET_STD)


def _from_file(
    spec: str,
    num_classes: int | None,
    in_channels: int | None,
    pretrained: bool,
    example_shape: tuple[int, ...] | None,
) -> ModelSource:
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None:
            raise CaptureError(
                f"{what}={value} cannot be handed to {spec}, which takes no arguments; set it in the function."
            )
    if pretrained:
        raise CaptureError(f"weights='pretrained' means nothing for {spec}; load them in the function, or name a file.")
    module, example = build_from_file(spec)
    if example is None:
        if example_shape is None:
            raise CaptureError(
                f"{spec} does not say what input the model takes. Return (model, example_input) from the function, or"
                " give example_shape=(C, H, W) (--shape C,H,W)."
            )
        example = _example(example_shape)
    return ModelSource(spec, module, example)
