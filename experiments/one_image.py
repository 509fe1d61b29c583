"""One test image going down the road: the figure of docs/road.md.

    python experiments/one_image.py [--data PATH] [--index 0]

The published CIFAR-10 ResNet-20, training-free, 8 levels, pulse: what one layer hands on in the ANN and in the QANN,
what its neurons have sent by steps 1, 2, 4, 8 and 16, and the logits over time. Writes
experiments/results/one-image.png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

import spikezip
from spikezip.data import ImageData, open_data
from spikezip.measure.equivalence import qann_codes
from spikezip.models import resolve
from spikezip.run import Engine, execute

RESULT = Path(__file__).parent / "results" / "one-image.png"
LAYER, CHANNELS, STEPS = "layer2.0.relu2", 4, 24
SHOWN = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Maps:
    """One layer's channels ``[C, H, W]``: the ANN's values, the QANN's codes, the SNN's codes at each step."""

    activation: Tensor
    quantized: Tensor
    codes: list[Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--index", type=int, default=0, help="which test image")
    choices = parser.parse_args()
    torch.manual_seed(0)
    source = resolve("spikezip:resnet20", weights="pretrained", root=choices.data)
    data = open_data("cifar10", choices.data, mean=source.mean, std=source.std)
    images, labels = data.tensors("test", choices.index + 1)
    image, label = images[-1:], int(labels[-1])
    snn = spikezip.convert(source.module, source.example, data.calibration(512), levels=8)
    seen: list[Tensor] = []

    def observe(layer: str, t: int, which: Tensor, codes: Tensor) -> None:
        if layer == LAYER:
            seen.extend(codes[:, 0])

    run = execute(snn, image, STEPS, engine=Engine.REFERENCE, stop=False, observe=observe)
    settled = int(run.settled_at)
    activation = activations(spikezip.morph(spikezip.capture(source.module, source.example)), image)
    maps = Maps(activation[0], qann_codes(snn, (image,))[0][LAYER][0], seen)
    draw(image[0], data.class_names[label], maps, run.logits[:, 0], data, settled)


def activations(ann: fx.GraphModule, image: Tensor) -> Tensor:
    """What the ANN's node of the layer's name hands on."""
    found: list[Tensor] = []

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node):
            value = super().run_node(n)
            if n.meta.get("origin") == LAYER and n.op == "call_function" and "relu" in str(n.target):
                found.append(value)
            return value

    with torch.no_grad():
        Watching(ann).run(image)
    return found[0]


def draw(image: Tensor, name: str, shown: Maps, logits: Tensor, data: ImageData, settled: int) -> None:
    """The image, then a row of maps for each channel shown, then the logits."""
    from matplotlib.figure import Figure

    most = shown.activation.flatten(1).amax(1).argsort(descending=True)[:CHANNELS].tolist()
    titles = ["ANN", "QANN", *(f"SNN, t={t}" for t in SHOWN)]
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.9, 1.2))
    axes = top.subplots(CHANNELS, len(titles))
    for row, channel in zip(axes, most, strict=True):
        maps = [shown.activation[channel], shown.quantized[channel], *(shown.codes[t - 1][channel] for t in SHOWN)]
        for column, (axis, values) in enumerate(zip(row, maps, strict=True)):
            axis.imshow(values, cmap="viridis", vmin=0, vmax=None if column == 0 else 7, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"channel {channel}", fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    left, right = bottom.subplots(1, 2, gridspec_kw={"width_ratios": (1, 3.2)})
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    left.imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0), interpolation="nearest")
    left.set(xticks=[], yticks=[], title=f"input: {name}")
    steps = range(1, len(logits) + 1)
    order = logits[-1].argsort(descending=True)[:3].tolist()
    for index, values in enumerate(logits.T):
        colour = dict(zip(order, ("#0072b2", "#d55e00", "#009e73"), strict=True)).get(index, "#bbbbbb")
        right.plot(steps, values, color=colour, label=data.class_names[index] if index in order else None)
    right.axvline(settled, color="#666666", linestyle=":", linewidth=1)
    right.set(xlabel="time step t", ylabel="logit", title=f"logits; from t = {settled} (dotted) the QANN's, for ever")
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(RESULT, dpi=150)


if __name__ == "__main__":
    main()
