"""Arguments that several verbs share, and how their text is read."""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spikezip.errors import InputError, StageError
from spikezip.levels import Levels

if TYPE_CHECKING:
    from spikezip.morph import Morph


class ResidualName(enum.Enum):
    """How residual blocks are wired."""

    vanilla = "vanilla"
    rcr = "rcr"
    sew_add = "sew-add"
    iand = "iand"
    ms = "ms"


class PoolName(enum.Enum):
    """What becomes of max-pooling."""

    keep = "keep"
    average = "average"


class EngineName(enum.Enum):
    """How a spiking network is run."""

    sweep = "sweep"
    reference = "reference"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="[bold]timm:NAME[/], [bold]torchvision:NAME[/], [bold]spikezip:NAME[/], or [bold]path/to/file.py:function"
        "[/] (a function without arguments that returns an nn.Module).",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        show_default=False,
        help="[bold]digits[/], [bold]cifar10[/], [bold]cifar100[/], a folder of images in one folder a class, or an "
        "[bold].npz[/] with images and labels.",
    ),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        envvar="SPIKEZIP_DATA",
        show_default=False,
        help="Folder that holds the CIFAR files; they are downloaded there if they are missing.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE|pretrained",
        show_default=False,
        help="Weights of the model: a .safetensors file, or [bold]pretrained[/] for those its library offers.",
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option("--classes", min=1, show_default=False, help="Outputs of a library's model, if not its own number."),
]
ShapeOption = Annotated[
    str | None,
    typer.Option("--shape", metavar="C,H,W", show_default=False, help="Shape of one input, if the model does not say."),
]
LevelsOption = Annotated[
    str,
    typer.Option("--levels", metavar="N|LOW..HIGH", help="Levels of every neuron: 8 (0..7, or -4..3), or a range."),
]
WeightBitsOption = Annotated[
    str,
    typer.Option(
        "--weight-bits", metavar="N|none", help="Bits of integer weights (equality is then exact), or none for floats."
    ),
]
ResidualOption = Annotated[
    ResidualName,
    typer.Option(
        "--residual",
        help="Residual blocks as they are, or rewired, which changes the function: rcr (the paper's), sew-add, iand, "
        "ms (see docs/energy.md).",
    ),
]
PoolOption = Annotated[
    PoolName, typer.Option("--pool", help="Keep max-pooling (exact), or average instead (the paper's).")
]
EncodingOption = Annotated[
    str,
    typer.Option(
        "--encoding",
        metavar="pulse|even:N|constant|shares:A/B/...",
        help="How the input is released over time: all at step 1, evenly over N steps, over the whole run, or A, B, "
        "... parts of it by steps 1, 2, ..., of as many as the last says, a power of two.",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option("--image-size", min=1, show_default=False, help="Scale images to so many pixels a side."),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="M|R,G,B",
        show_default=False,
        help="What the model was trained to have subtracted from pixels in 0..1, per channel; if not given, what the "
        "bundle, the model's library or DATA says, in this order.",
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        "--std", metavar="S|R,G,B", show_default=False, help="What they are then divided by, such as 1 for nothing."
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", show_default=False, help="A network saved by spikezip convert or demo.")
]
SplitOption = Annotated[str, typer.Option("--split", help="Which images: train, val, trainval or test.")]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="Blocks of steps at once (sweep, fast), or step by step (reference).")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files of the same name.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything drawn at random.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Images at a time (memory, not results).")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, show_default=False, help="Only the first so many images.")
]


def read_shape(text: str | None) -> tuple[int, ...] | None:
    """``3,32,32`` (or ``3x32x32``) as numbers.

    >>> read_shape("3,32,32")
    (3, 32, 32)
    """
    if text is None:
        return None
    parts = re.split("[,x]", text.replace(" ", ""))
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"--shape {text!r} is no shape. Write the sizes of one input without the batch: 3,32,32.")
    return tuple(int(part) for part in parts)


def read_channels(name: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers per channel, or one for all: ``0.485,0.456,0.406``.

    >>> read_channels("--mean", "0.5, 0.4, 0.3"), read_channels("--std", "1")
    ((0.5, 0.4, 0.3), (1.0,))
    """
    return _numbers(name, text, "give one number, or one for each channel with commas between: 0.485,0.456,0.406")


def read_step_weights(text: str | None) -> tuple[float, ...] | None:
    """How much each of the first steps counts: ``0,1``.

    >>> read_step_weights("0,1")
    (0.0, 1.0)
    """
    return _numbers("--fit-steps", text, "give a number for each of steps 1, 2, ...: 0,1 for the answer at step 2")


def _numbers(name: str, text: str | None, wanted: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} {text!r}: {wanted}.") from None


def read_levels(text: str) -> int | Levels:
    """``8`` (a count) or ``LOWEST..HIGHEST``.

    >>> read_levels("8"), read_levels("-4..3")
    (8, Levels(lowest=-4, highest=3))
    """
    if re.fullmatch(r"\d+", text):
        if int(text) < 2:
            raise StageError(f"--levels {text}: a quantizer needs 2 levels or more, for example --levels 8.")
        return int(text)
    found = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
    if not found:
        raise StageError(f"--levels {text!r} is neither a count nor a range. Write for example 8, 0..7 or -4..3.")
    return Levels(int(found[1]), int(found[2]))


def read_weight_bits(text: str) -> int | None:
    """A number of bits, or ``none`` for floating-point weights.

    >>> read_weight_bits("8"), read_weight_bits("none")
    (8, None)
    """
    if text.lower() == "none":
        return None
    if not re.fullmatch(r"\d+", text) or not 2 <= int(text) <= 16:
        raise StageError(f"--weight-bits {text!r}: give 2 to 16, or none for floating-point weights.")
    return int(text)


def read_initial_code(text: str) -> int | Literal["mean"]:
    """A code, or ``mean`` for each neuron's mean code.

    >>> read_initial_code("1"), read_initial_code("mean")
    (1, 'mean')
    """
    if text.lower() == "mean":
        return "mean"
    if not re.fullmatch(r"\d{1,7}", text):
        raise StageError(f"--initial-code {text!r}: give a code, 0 or more, or mean for each neuron's mean code.")
    return int(text)


def morph_choice(residual: ResidualName, pool: PoolName) -> Morph:
    """The library's choices for those of the command line."""
    from spikezip.morph import Morph, Pooling, Residual

    return Morph(pooling=Pooling(pool.value), residual=Residual(residual.value))
