"""``spikezip demo``: the whole road on a small data set, in minutes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from spikezip.cli import options, screen
from spikezip.cli.run import show as show_record
from spikezip.cli.target import output_folder
from spikezip.cli.verify import EXIT_DIFFERENT
from spikezip.cli.verify import show as show_certificate

LEVELS = 8
WEIGHT_BITS = 8
STEPS = 12


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for what the demo writes.")] = Path("demo-out"),
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Go the whole road on handwritten digits, on a CPU, in under three minutes.

    Trains a small residual network, quantizes it to 8 levels, fine-tunes it with its sub-paths (PET), turns it into a
    spiking network, runs that on every test image and verifies every neuron. Writes certificate.json, record.json,
    report.html and snn.spikezip. Nothing is downloaded.

    [bold]Example[/]
      spikezip demo --out demo-out
    """
    import torch

    import spikezip
    from spikezip.cli.sources import remember
    from spikezip.data import open_data
    from spikezip.kernels import threads
    from spikezip.models import resolve
    from spikezip.report.page import write_report
    from spikezip.run import Margin, Settled
    from spikezip.spike import Pulse
    from spikezip.train import PET, QAT, SGD, Plan, paths_for

    began = time.perf_counter()
    # Layers this small are slower on several threads, and far slower where others use the same cores.
    with output_folder(out, overwrite) as draft, threads(1):
        torch.manual_seed(seed)
        digits = open_data("digits")
        images, labels = digits.tensors("test")
        source = resolve("spikezip:digits")

        def accuracy(network: torch.nn.Module) -> str:
            with torch.no_grad():
                return screen.percent(float((network(images).argmax(1) == labels).float().mean()))

        def stage(text: str) -> None:
            screen.say(f"[dim]{time.perf_counter() - began:5.1f} s[/]  {text}")

        stage(f"data      {digits.count('trainval'):,} training and {len(images)} test images of digits")
        plan = Plan(
            QAT(),
            epochs=40,
            batch=64,
            optimizer=SGD(rate=0.1, nesterov=True),
            warmup=2,
            seed=seed,
            train_split="trainval",
            validation_split=None,
        )
        trained = spikezip.finetune(source.module, digits, plan)
        stage(f"ANN       trained: {accuracy(trained)}")

        ann = spikezip.morph(spikezip.capture(trained, source.example))
        stage(f"morph     BatchNorm folded: {accuracy(ann)}")

        qann = spikezip.quantize(ann, LEVELS, digits.calibration(512, seed))
        remember(qann, "spikezip:digits", digits)
        stage(f"quantize  {LEVELS} levels: {accuracy(qann)}")

        paths = paths_for(Pulse(), spikezip.Levels.unsigned(LEVELS))
        plan = replace(plan, objective=PET(paths), epochs=20, optimizer=SGD(rate=0.03), warmup=1)
        qann = spikezip.finetune(qann, digits, plan)
        stage(f"finetune  with the sub-paths {', '.join(map(str, paths))} (PET): {accuracy(qann)}")

        qann = spikezip.to_integer(qann, WEIGHT_BITS)
        stage(f"integer   weights of {WEIGHT_BITS} bits: {accuracy(qann)}")

        snn = spikezip.spike(qann, Pulse())
        snn.save(draft / "snn.spikezip")
        stage(f"spike     {len(snn.layers)} layers of ST-BIF neurons")

        certificate = spikezip.verify(snn, images, seed=seed)
        certificate.save(draft / "certificate.json")
        stage(f"verify    {certificate.mismatches} codes differ on {len(images)} test images")

        record = spikezip.measure(
            snn,
            images,
            labels,
            ann=trained,
            steps=STEPS,
            data="digits",
            certificate=certificate,
            seed=seed,
            early_exit=[Margin(0.6), Settled()],
        )
        record.save(draft / "record.json")
        write_report(draft / "record.json", draft / "report.html")
        stage(f"report    {screen.literal(out / 'report.html')}")
        found = json.loads((draft / "record.json").read_text())
        proof = json.loads((draft / "certificate.json").read_text())
    show_record(found)
    show_certificate(proof)
    screen.say(
        f"[bold]{screen.literal(out)}[/] holds report.html (open it in a browser), record.json, certificate.json, "
        "snn.spikezip."
    )
    if not proof["equal"]:
        raise typer.Exit(EXIT_DIFFERENT)
