"""``spikezip train``: an ANN, a QANN with or without its sub-paths, or an SNN's first steps, as a recipe says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spikezip.cli import options, screen
from spikezip.cli.target import output_file
from spikezip.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from spikezip.data import ImageData
    from spikezip.models import ModelSource
    from spikezip.train.progress import Event, Listener
    from spikezip.train.recipe import Recipe

BUNDLE = "snn.spikezip"
_CHECKED = 500  #: held-out images that the integer network is compared on


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", show_default=False, help="A YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", show_default=False, help="Folder for weights, checkpoints and history (else the recipe's)."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, max=2**63 - 1, show_default=False, help="Seed of everything drawn (else the recipe's)."
        ),
    ] = None,
    weight_bits: options.WeightBitsOption = "8",
    image_size: options.ImageSizeOption = None,
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Train an ANN, a quantized network (qat, pet, speq) or an SNN's first steps (trajectory) as RECIPE says.

    Writes network.safetensors, history.json and a checkpoint; all stages but ann write snn.spikezip too, ready for run
    and verify, and live.safetensors where BatchNorm was live. A run that was killed goes on with --resume to the same
    result. To end a long one early, add 'cooldown: {after: 12, epochs: 2}' to its recipe and resume: after epoch 12 the
    rate falls to 0 within two.

    [bold]Examples[/]
      spikezip train recipe.yaml --out runs/mine
      spikezip train recipe.yaml --out runs/mine --resume
      spikezip train recipe.yaml --out runs/mine-2 --seed 2
      accelerate launch --num_processes 2 -m spikezip train recipe.yaml --out runs/mine
      ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 -m spikezip train recipe.yaml --out runs/mine

    [bold]A recipe[/]
      name: digits-pet
      stage: pet
      model: spikezip:digits
      weights: runs/ann/network.safetensors
      data: digits
      epochs: 12
      optimizer: {sgd: {rate: 0.03}}
    """
    import torch

    from spikezip.cli.sources import open_both, open_teacher, starts_random, told_normalisation
    from spikezip.train import train
    from spikezip.train.recipe import Stage, read_recipe

    plan, bits = read_recipe(recipe), options.read_weight_bits(weight_bits)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    target = out or (Path(plan.out).expanduser() if plan.out is not None else None)
    if target is None:
        raise RecipeError(f"The recipe '{recipe}' names no folder to write to. Add 'out: FOLDER' to it, or --out.")
    if plan.teacher is not None and starts_random(plan.teacher.model, plan.teacher.weights):
        raise RecipeError(f"The teacher {plan.teacher.model} would be random. Give its trained 'weights:' there.")
    learns_from_itself = plan.needs_teacher and plan.teacher is None
    if learns_from_itself and starts_random(plan.model, plan.weights):
        raise RecipeError(
            f"The loss learns from {plan.model} as it is at the start, which is random. Give its trained 'weights:', "
            "or another network as 'teacher:', or remove loss.distil and sub_labels: teacher."
        )
    torch.manual_seed(plan.seed)
    source, images = open_both(
        plan.model,
        plan.data,
        weights=plan.weights,
        classes=None,
        image_size=image_size,
        root=data_root,
        mean=plan.mean,
        std=plan.std,
        new_classifier=plan.stage is Stage.ANN,
    )
    if learns_from_itself and source.new_classifier:
        raise RecipeError(
            f"The loss learns from {plan.model} as it is at the start, whose classifier is new, and random: its "
            f"'weights:' are for another number of classes than {images.name} has. Train it on {images.name} without "
            "loss.distil first, and give the weights of that."
        )
    _check_outputs(source, images)
    other = plan.teacher and open_teacher(plan.teacher.model, plan.teacher.weights, images, data_root)
    ann = qann = None
    if plan.stage is not Stage.ANN:
        ann, qann = _quantized(plan, source, images)
    # Logits are those of the network as given; features are compared with the ANN that was quantized.
    teacher = ann if plan.learns_features else source.module if learns_from_itself else other
    if _is_main():
        choose = "give 'mean:' and 'std:' in the recipe"
        given = (plan.mean is not None, plan.std is not None)
        screen.note(told_normalisation(source, images, given=given, choose=choose))
    checkpoint = target / "checkpoint.safetensors"
    before = None if resume else _written(checkpoint)
    with contextlib.ExitStack() as stack, _telling(target, lambda: _written(checkpoint) not in (None, before)):
        done = train(
            qann or source.module,
            images,
            plan.plan(teacher),
            out=target,
            resume=resume,
            overwrite=overwrite,
            on_event=_listener(stack, target if plan.tensorboard else None),
        )
    if not _is_main():
        return
    # Before anything is printed: whoever reads it may have seen enough.
    bundled = None if plan.stage is Stage.ANN else _save(done.network, plan, target, bits, images)
    last = done.history[-1]
    for what, numbers in (("training", last.numbers), ("validation", last.validation)):
        for name, value in numbers.items():
            if name.startswith("accuracy"):
                screen.say(f"{what} {name}: {screen.percent(value)}")
    screen.say(f"[bold]{screen.literal(target)}[/] holds the trained weights.")
    if bundled is not None:
        _tell(done.network, bundled, plan, images, target)


def _written(file: Path) -> int | None:
    """When a file was written, if there is one."""
    return file.stat().st_mtime_ns if file.is_file() else None


@contextlib.contextmanager
def _telling(folder: Path, saved: Callable[[], bool]) -> Iterator[None]:
    """Tell whoever stops a training what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        if saved():
            screen.note(f"'{folder}' holds the last checkpoint: go on from it with --resume.")
        else:
            screen.note(f"No checkpoint was written to '{folder}' yet.")
        raise


def _check_outputs(source: ModelSource, images: ImageData) -> None:
    """Refuse fewer outputs than classes before training: on a GPU the loss would crash, and not say why."""
    from spikezip.cli.accuracy import answers, too_few

    inputs = source.example if isinstance(source.example, tuple) else (source.example,)
    answer = answers(source.module, *inputs).shape[1:]
    if too_few(answer, images):
        raise RecipeError(
            f"{source.name} has {answer[0]} outputs, and {images.name} {images.num_classes} classes. Give the "
            "network as many outputs as the data has classes."
        )


def _quantized(recipe: Recipe, source: ModelSource, images: ImageData) -> tuple[nn.Module, nn.Module]:
    """The morphed ANN, and the QANN made of it."""
    import spikezip
    from spikezip.cli.sources import begun_with, remember, starts_random
    from spikezip.morph import Morph

    choice = Morph(**dict(recipe.morph))
    if starts_random(recipe.model, recipe.weights):
        screen.note(f"{recipe.model} starts from random weights: give 'weights:' to fine-tune a trained network.")
    with screen.working("capturing and calibrating"):
        original = spikezip.capture(source.module, source.example)
        ann = spikezip.morph(original, choice)
        real = _calibration(recipe, images)
        qann = recipe.quantized(ann, original, real)
    if recipe.start is not None:
        qann = begun_with(qann, recipe.start, recipe.start_scale)
    remember(qann, recipe.model, images)
    return ann, qann


def _calibration(recipe: Recipe, images: ImageData) -> Tensor:
    return images.calibration(min(recipe.calibration, images.count("train")), recipe.seed)


def _save(qann: nn.Module, recipe: Recipe, folder: Path, bits: int | None, images: ImageData) -> fx.GraphModule:
    """Write the bundle; the network that is in it."""
    import spikezip
    from spikezip.spike import parse_encoding

    network: fx.GraphModule = qann  # type: ignore[assignment]  # train keeps its type
    if bits is not None:
        network = spikezip.to_integer(network, bits, calibration=_calibration(recipe, images))
    with output_file(folder / BUNDLE, overwrite=True) as draft:
        spikezip.spike(network, parse_encoding(recipe.encoding)).save(draft)
    return network


def _tell(qann: nn.Module, bundled: fx.GraphModule, recipe: Recipe, images: ImageData, folder: Path) -> None:
    """What short weights cost, and what is next."""
    from spikezip.cli.accuracy import tell

    if bundled is not qann:
        tell({"QANN": qann, "integer QANN": bundled}, bundled, images, recipe.validation_split or "test", _CHECKED)
    bundle, record = folder / BUNDLE, folder / "record.json"
    screen.say(f"Next: {screen.command('spikezip', 'run', bundle, '--data', images.name, '--out', record)}")


def _listener(stack: contextlib.ExitStack, tensorboard: Path | None) -> Listener | None:
    """TensorBoard beside what training shows of itself, in the main process; None leaves training that alone."""
    if tensorboard is None or not _is_main():
        return None
    from spikezip.train import TensorBoard
    from spikezip.train.progress import bar_or_lines

    listeners: list[Listener] = [stack.enter_context(TensorBoard(tensorboard / "tensorboard")), bar_or_lines(stack)]

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def _is_main() -> bool:
    """Whether this process is the one that writes and prints (the only one, without a launcher)."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # The first PartialState of a process decides for all that follow; it must see what Accelerator would.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).is_main_process
