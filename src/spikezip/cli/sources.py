"""A model and the data it is to see, opened together so that shapes, classes and normalisation agree."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from spikezip.cli.accuracy import answers, too_few
from spikezip.data import ImageData, open_data
from spikezip.errors import InputError
from spikezip.graph import network
from spikezip.models import ModelSource, resolve
from spikezip.models.weights import load_weights
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike.swap import tracer_shape

if TYPE_CHECKING:
    from spikezip.spike import SpikingNetwork

_ASKED = "as asked"
_NOTED = "as the bundle says"
_OWN = "spikezip"
_LIBRARIES = (_OWN, "torchvision", "timm")


def open_both(
    model: str,
    data: str,
    *,
    weights: str | None,
    classes: int | None,
    image_size: int | None,
    root: Path | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    new_classifier: bool = False,
) -> tuple[ModelSource, ImageData]:
    """Build a model for a data set, and open the data as the model wants it.

    A library's model is built for the data's classes and channels, and images are scaled to the size it was made for;
    a user's own model gets the data's images in their own size, or scaled to ``image_size``. Images are normalised with
    ``mean`` and ``std``, else as the weights want it (a library's, or such as were trained here), else as is usual for
    the data. With ``new_classifier``, weights for another number of classes fit (see :func:`~spikezip.models.resolve`).

    Raises:
        SpikezipError: either cannot be found, or they do not fit.
    """
    own = open_data(data, root, mean=mean, std=std, image_size=image_size)
    kind = model.partition(":")[0]
    if kind not in _LIBRARIES:
        source = resolve(model, weights=weights, example_shape=own.image_shape, root=root)
        _check_inputs(source)
        if _says(source, own.image_shape[0]):
            own = open_data(data, root, mean=mean or source.mean, std=std or source.std, image_size=image_size)
        return source, own
    # A library's pretrained head has the classes that it was trained for.
    fixed = weights == "pretrained" and kind != _OWN and not new_classifier
    channels = own.image_shape[0]
    source = resolve(
        model,
        num_classes=classes or (None if fixed else own.num_classes),
        in_channels=channels,
        weights=weights,
        new_classifier=new_classifier,
        example_shape=own.image_shape if image_size else None,
        root=root,
    )
    example = source.example
    size = example.shape[-2:] if not isinstance(example, tuple) else example[0].shape[-2:]
    says = _says(source, channels)
    images = open_data(
        data,
        root,
        mean=mean or (source.mean if says else None),
        std=std or (source.std if says else None),
        image_size=(int(size[0]), int(size[1])),
    )
    _check_inputs(source)
    return source, images


def open_teacher(model: str, weights: str | None, images: ImageData, root: Path | None) -> nn.Module:
    """A network to learn from, for images as they were opened for another.

    Raises:
        SpikezipError: it cannot be found, or was trained for other classes or on images that were normalised otherwise.
    """
    channels, of_library = images.image_shape[0], model.partition(":")[0] in _LIBRARIES
    source = resolve(
        model,
        num_classes=images.num_classes if of_library else None,
        in_channels=channels if of_library else None,
        weights=weights,
        example_shape=images.image_shape,
        root=root,
    )
    _check_inputs(source)
    if source.new_classifier:
        raise InputError(
            f"The weights of the teacher {model} are for another number of classes than {images.name} has: its "
            f"classifier would be random. Train it on {images.name}, and give the weights of that."
        )
    if _says(source, channels) and (source.mean, source.std) != (images.mean, images.std):
        raise InputError(
            f"The teacher {model} wants pixels with mean {_listed(source.mean)} and std {_listed(source.std)}, and the "
            f"network sees them with mean {_listed(images.mean)} and std {_listed(images.std)}. Both see the same "
            "ones: give the teacher's 'mean:' and 'std:' in the recipe, if the network was trained so, or is yet to be."
        )
    return source.module


def _listed(values: Sequence[float] | None) -> str:
    return ", ".join(f"{v:.4g}" for v in values or ())


def starts_random(model: str, weights: object) -> bool:
    """Whether a model is a library's, without weights; a user's own may bring them."""
    return weights is None and model.partition(":")[0] in ("spikezip", "timm", "torchvision")


def _says(source: ModelSource, channels: int) -> bool:
    """Whether the model's library says how images of so many channels are normalised."""
    return source.mean is not None and source.std is not None and len(source.mean) == channels


def told_normalisation(source: ModelSource, images: ImageData, *, given: tuple[bool, bool], choose: str) -> str:
    """What is done to pixels, and why, as a network trained otherwise answers badly and says nothing.

    Args:
        source: the model.
        images: as :func:`open_both` opened them.
        given: whether the user chose the mean, and the standard deviation.
        choose: how to.
    """
    says = _says(source, images.image_shape[0])
    own = (says and source.mean == images.mean, says and source.std == images.std)
    wanted = f"as {source.name} wants them"
    return _told(images, [_ASKED if g else wanted if o else None for g, o in zip(given, own, strict=True)], choose)


def _told(images: ImageData, reasons: Sequence[str | None], choose: str) -> str:
    """One sentence: the mean and the standard deviation, where each comes from (None: the data's usual), what to do."""
    one = len({*zip(images.mean, images.std, strict=True)}) == 1
    values = [_listed(each[:1] if one else each) for each in (images.mean, images.std)]
    because = [reason or f"as is usual for {images.name}" for reason in reasons]
    mean, std = (f"{name} {value}" for name, value in zip(("mean", "std"), values, strict=True))
    if because[0] != because[1]:
        done = f"normalised with {mean}, {because[0]}, and {std}, {because[1]}"
    elif one and (images.mean[0], images.std[0]) == (0, 1):
        done = f"taken as they are{'' if _floats(images) else ', in 0..1'}, {because[0]}"
    else:
        done = f"normalised with {mean} and {std}, {because[0]}"
    # A user's own floats may have been normalised before, whatever the weights say of pixels.
    sure = all(reasons) and (not _floats(images) or all(reason in (_ASKED, _NOTED) for reason in reasons))
    return f"Pixels are {done}" + ("." if sure else f"; if the model was trained otherwise, {choose}.")


def _floats(images: ImageData) -> bool:
    """Whether pixels are floating-point numbers of the user's, in any range."""
    stored = images.sources["train"].pixels(torch.arange(1), torch.device("cpu"))
    return stored is not None and stored.is_floating_point()


def _check_inputs(source: ModelSource) -> None:
    try:
        inspect.signature(source.module.forward).bind(source.example)
    except TypeError as reason:
        raise InputError(
            f"{source.name} cannot be called with images alone ({reason}), and the command line gives nothing else. "
            "Convert a network of several inputs in Python: spikezip.convert(model, (a, b), (a, b))."
        ) from reason
    except ValueError:  # TorchScript has no signature
        pass


def answer_shape(snn: SpikingNetwork) -> tuple[int, ...]:
    """Shape of the (first) answer of a spiking network to one image."""
    return tuple(tracer_shape(network.spec(network.outputs(snn.graph)[0])))


def check_answers(snn: SpikingNetwork, name: str, data: ImageData) -> None:
    """Refuse a classifier, whose answers are ``[B, C]``, for data of more classes; more answers than classes are good.

    Raises:
        InputError: it has fewer answers than there are classes.
    """
    answer = answer_shape(snn)
    if too_few(answer, data):
        raise InputError(
            f"{name} gives {answer[0]} answers, and {data.name} has {data.num_classes} classes. Give the data "
            "that it is for, or a network for these."
        )


def begun_with(qann: fx.GraphModule, files: Sequence[str], scale: float = 1.0) -> fx.GraphModule:
    """A network with trained weights, and bias shares if some were learned: those of a file, or the mean of several.

    Its step sizes are multiplied by ``scale``.
    """
    from spikezip.train import soup
    from spikezip.train.checkpoint import shares_in

    trained = [network.copied(qann) for _ in files]
    for each, file in zip(trained, files, strict=True):
        load_weights(each, file)
        if shares := shares_in(Path(file)):
            network.remark(each, bias_shares=shares)
    mean = soup(trained)
    with torch.no_grad():
        for quantizer in (m for m in mean.modules() if isinstance(m, Quantizer)):
            quantizer.scale.mul_(scale)
    return mean


def remember(gm: fx.GraphModule, model: str, data: ImageData) -> None:
    """Write into a network what its images must look like, so that a bundle can be run without saying it again."""
    network.remark(gm, model=model, data=data.name, mean=list(data.mean), std=list(data.std))


def open_for(
    snn: SpikingNetwork,
    data: str,
    root: Path | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[ImageData, str | None]:
    """The data as a saved network wants it: its size of images, the normalisation it was calibrated with.

    ``mean`` and ``std`` go before those that the network notes. A sentence says what is done to pixels, unless that is
    what the network notes: one saved in Python need not note any.

    Raises:
        InputError: the network does not take images, or others than these.
        DataError: the data cannot be read.
    """
    specs = network.info(snn.graph).inputs
    if len(specs) != 1 or len(specs[0].shape) != 3:
        raise InputError(
            f"This network takes {len(specs)} inputs of shape {[list(s.shape) for s in specs]}, not images [C, H, W]. "
            "Load it in Python with spikezip.load and run it there."
        )
    channels, height, width = specs[0].shape
    noted = [_numbers(network.note(snn.graph, name), channels) for name in ("mean", "std")]
    own = open_data(data, root)
    if own.image_shape[0] != channels:
        raise InputError(
            f"This network takes images of {channels} channels; those of {data} have {own.image_shape[0]}. "
            f"It was made for {network.note(snn.graph, 'data', 'other data')}: give that as --data."
        )
    chosen = [n if given is None else given for given, n in zip((mean, std), noted, strict=True)]
    images = open_data(data, root, mean=chosen[0], std=chosen[1], image_size=(height, width))
    reasons = [
        _ASKED if given is not None else _NOTED if n is not None else None
        for given, n in zip((mean, std), noted, strict=True)
    ]
    noted_alone = reasons == ["as the bundle says"] * 2
    return images, None if noted_alone else _told(images, reasons, "give --mean and --std")


def open_ann(
    model: str, weights: str | None, data: str, snn: SpikingNetwork, images: Tensor, root: Path | None
) -> nn.Module:
    """The trained network that an SNN came from, able to answer the SNN's images.

    Raises:
        SpikezipError: it cannot be found.
        InputError: it takes other images than the SNN does, or gives other answers.
    """
    module = open_both(model, data, weights=weights, classes=None, image_size=None, root=root)[0].module.eval()
    try:
        found = answers(module, images[:1])
    except (RuntimeError, ValueError, TypeError) as reason:
        raise InputError(
            f"--ann {model} does not take the images of the spiking network, {list(images.shape[1:])}: {reason}. "
            "Give the network that BUNDLE was converted from."
        ) from reason
    wanted = network.spec(network.outputs(snn.graph)[0]).shape
    if found.shape != wanted:
        raise InputError(
            f"--ann {model} answers a batch of one image with {list(found.shape)}, the spiking network with "
            f"{list(wanted)}. Give the network that BUNDLE was converted from."
        )
    return module


def _numbers(values: object, count: int) -> Sequence[float] | None:
    if isinstance(values, list | tuple) and len(values) == count:
        return [float(v) for v in values]
    return None
