"""``spikezip convert``: a trained network in, a spiking network in a bundle out, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spikezip.cli import options, screen
from spikezip.cli.target import output_file
from spikezip.report.tables import counted


def command(
    model: options.ModelArgument,
    data: options.DataOption,
    out: Annotated[Path, typer.Option("--out", show_default=False, help="The bundle to write, such as net.spikezip.")],
    weights: options.WeightsOption = None,
    levels: options.LevelsOption = "8",
    weight_bits: options.WeightBitsOption = "8",
    residual: options.ResidualOption = options.ResidualName.vanilla,
    pool: options.PoolOption = options.PoolName.keep,
    encoding: options.EncodingOption = "pulse",
    initial_code: Annotated[
        str,
        typer.Option(
            "--initial-code",
            metavar="N|mean",
            help="Where tracers start. mean: each at its mean code on the calibration images, which saves spikes.",
        ),
    ] = "0",
    calibration: Annotated[
        int, typer.Option("--calibration", min=1, help="Training images that thresholds are found from.")
    ] = 512,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--keep-weights",
            show_default=False,
            help="Fit each layer's weights, on quantized inputs, to what the layer gives in MODEL. By default, if the "
            "outputs are then nearer to the model's on the calibration images.",
        ),
    ] = None,
    fit_steps: Annotated[
        str | None,
        typer.Option(
            "--fit-steps",
            metavar="W,W,...",
            help="How much the answers at steps 1, 2, ... count, if weights are to be fitted for those and not for the "
            "settled one: 0,1 for t = 2; 1,1,1,1 for any time. Best with --residual ms --initial-code 1.",
        ),
    ] = None,
    check: Annotated[
        int, typer.Option("--check", min=0, help="Test images to tell the accuracy of each stage on; 0: none.")
    ] = 500,
    classes: options.ClassesOption = None,
    image_size: options.ImageSizeOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    seed: options.SeedOption = 0,
    data_root: options.DataRootOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Convert MODEL into a spiking network without training, and save it.

    Thresholds, and weights that make up for quantization, are found from training images of DATA, without their
    labels. More levels are more accurate and need more steps.

    [bold]Examples[/]
      spikezip convert spikezip:resnet20 --weights pretrained --data cifar10 --levels 16 --out resnet20.spikezip
      spikezip convert spikezip:resnet20 --weights pretrained --data cifar10 --levels 5 --residual ms --initial-code 1
        --fit-steps 1,1,1,1 --out anytime.spikezip
      spikezip convert my_models.py:build --weights mine.safetensors --data digits --encoding even:8 --out mine.spikezip
      spikezip convert my_models.py:build --weights mine.safetensors --data photos/ --mean 0 --std 1 --out mine.spikezip
    """
    import torch
    from torch import nn

    import spikezip
    from spikezip.cli.accuracy import AtStep, tell
    from spikezip.cli.sources import open_both, remember, starts_random, told_normalisation
    from spikezip.spike import parse_encoding

    count, bits = options.read_levels(levels), options.read_weight_bits(weight_bits)
    start, fitted = options.read_initial_code(initial_code), options.read_step_weights(fit_steps)
    shift, scale = options.read_channels("--mean", mean), options.read_channels("--std", std)
    release, choice = parse_encoding(encoding), options.morph_choice(residual, pool)
    with output_file(out, overwrite, reads=(model, weights, data)) as draft:
        with screen.working(f"opening {model} and {data}"):
            torch.manual_seed(seed)
            source, images = open_both(
                model,
                data,
                weights=weights,
                classes=classes,
                image_size=image_size,
                root=data_root,
                mean=shift,
                std=scale,
            )
            real = images.calibration(min(calibration, images.count("train")), seed)
        if starts_random(model, weights):
            screen.note(f"{model} has random weights: give --weights to convert a trained network.")
        stages: dict[str, nn.Module] = {}
        with screen.working(f"converting {model}") as now:

            def done(name: str, stage: nn.Module) -> None:
                stages[name] = stage
                now(f"converting {model}: {name} done")

            snn = spikezip.convert(
                source.module,
                source.example,
                real,
                levels=count,
                weight_bits=bits,
                morph=choice,
                encoding=release,
                initial_code=start,
                refit=refit,
                fit_steps=fitted,
                on_stage=done,
            )
        counted_steps = [t for t, weight in enumerate(fitted or (), 1) if weight]
        stages |= {f"SNN at t = {t}": AtStep(snn, t) for t in counted_steps}
        remember(snn.graph, model, images)
        snn.save(draft)
    given = (shift is not None, scale is not None)
    screen.note(told_normalisation(source, images, given=given, choose="give --mean and --std"))
    tell(stages, snn.qann, images, "test", check)
    sooner = ", usually far sooner" if len(snn.layers) > 1 else ""
    settles = f"settles within {snn.bound} steps of its complete input{sooner}"
    layers = counted(len(snn.layers), "layer")
    told = f"[bold]{screen.literal(out)}[/]: {screen.literal(model)}"
    screen.say(f"{told} as a spiking network, {layers} of neurons; {settles}.")
    screen.say(f"Next: {screen.command('spikezip', 'run', out, '--data', data, '--out', 'record.json')}")
