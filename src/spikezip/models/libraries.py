"""Models of torchvision and timm."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from spikezip.errors import CaptureError, DataError, UnknownNameError
from spikezip.models.torchvision_ops import import_timm, import_torchvision
from spikezip.models.weights import load_state


@dataclass(frozen=True)
class LibraryModel:
    """A model, the shape ``(C, H, W)`` of its images, their normalisation, and whether its classifier is new."""

    module: nn.Module
    shape: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    new_classifier: bool


def torchvision_model(
    name: str, num_classes: int | None, in_channels: int | None, pretrained: bool, new_classes: int | None
) -> LibraryModel:
    """A classification model of ``torchvision.models``. Raises as :func:`spikezip.models.resolve`."""
    models = import_torchvision("models")
    known = models.list_models(module=models)
    if name not in known:
        raise UnknownNameError("torchvision model", name, known)
    if in_channels not in (None, 3):
        raise CaptureError(
            f"torchvision:{name} takes images of 3 channels, not {in_channels}. Use timm:{name} if timm has it, or"
            " write a function that changes the first layer and give file.py:function."
        )
    best = models.get_model_weights(name).DEFAULT
    preset = best.transforms()
    state = None
    if pretrained:
        try:
            state = best.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise _no_download(f"torchvision:{name}", error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = models.get_model(
                name, weights=None, **({} if num_classes is None else {"num_classes": num_classes})
            )
    except (TypeError, ValueError) as error:
        raise CaptureError(f"torchvision:{name} cannot be built: {error}") from error
    new = state is not None and load_state(module, state, f"torchvision's {best}", new_classes=new_classes)
    # Transformers are built for one size, which may not be the one that the best weights were trained at.
    size = getattr(module, "image_size", None) or preset.crop_size[0]
    return LibraryModel(module, (3, size, size), tuple(preset.mean), tuple(preset.std), new)


def timm_model(name: str, num_classes: int | None, in_channels: int | None, pretrained: bool) -> LibraryModel:
    """A model of ``timm``, which makes a new classifier by itself. Raises as :func:`spikezip.models.resolve`."""
    timm = import_timm()
    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm.list_models())
    choices: dict[str, int] = {}
    if num_classes is not None:
        choices["num_classes"] = num_classes
    if in_channels is not None:
        choices["in_chans"] = in_channels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = timm.create_model(name, pretrained=pretrained, **choices)
    except Exception as error:  # timm's builders raise whatever the network or their assertions raise
        if pretrained:
            raise _no_download(f"timm:{name}", error) from error
        raise CaptureError(f"timm:{name} cannot be built: {type(error).__name__}: {error}") from error
    config = module.pretrained_cfg
    channels, height, width = config["input_size"]
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if in_channels is not None and in_channels != channels:
        channels, mean, std = in_channels, None, None  # the statistics were those of the usual channels
    new = pretrained and num_classes not in (None, config.get("num_classes"))
    return LibraryModel(module, (channels, height, width), mean, std, new)


def _no_download(spec: str, error: BaseException) -> DataError:
    return DataError(
        f"The pretrained weights of {spec} could not be fetched: {type(error).__name__}: {error}. Check the network, or"
        " download them elsewhere and give weights= a .safetensors file."
    )
