"""Networks written as NIR, read back from the file, and played: which spikes differ.

    python experiments/nir_graphs.py --data PATH/TO/CIFAR [--images 4]

The published CIFAR-10 ResNet-20 with two wirings, a VGG, and the kept network with MS blocks, of which NIR cannot hold
the rounding. Every spike of every step until all images have settled is compared with the reference engine's; and
answers with those of nirtorch, which knows nothing of spikezip. Writes experiments/results/nir.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import nir
import nirtorch
import torch
from torch import Tensor

import spikezip
from spikezip.cli.sources import open_both, open_for
from spikezip.export.nir import compare, currents
from spikezip.export.nir_nodes import nirtorch_nodes
from spikezip.measure.provenance import provenance
from spikezip.morph import Morph, Pooling, Residual

RESULT = Path(__file__).parent / "results" / "nir.json"
SEED, CALIBRATION = 0, 512
KEPT = "cifar10-resnet20-t4-live-mean"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.manual_seed(SEED)

    def converted(model: str, weights: str | None, **how: Any) -> Callable[[], tuple[spikezip.SNN, Tensor]]:
        def make() -> tuple[spikezip.SNN, Tensor]:
            source, data = open_both(
                model, "cifar10", weights=weights, classes=None, image_size=None, root=options.data
            )
            real = data.calibration(CALIBRATION, SEED)
            return spikezip.convert(source.module, source.example, real, **how), data.tensors("test", options.images)[0]

        return make

    def kept() -> tuple[spikezip.SNN, Tensor]:
        snn = spikezip.load(bundles.NETWORKS / f"{KEPT}.spikezip")
        return snn, open_for(snn, "cifar10", options.data)[0].tensors("test", options.images)[0]

    networks = {
        "ResNet-20, 8 levels": converted("spikezip:resnet20", "pretrained"),
        "ResNet-20, RCR, 8 levels": converted("spikezip:resnet20", "pretrained", morph=Morph(residual=Residual.RCR)),
        "VGG-16, random weights, average pooling, 8 levels": converted(
            "spikezip:vgg16", None, morph=Morph(pooling=Pooling.AVERAGE)
        ),
        "ResNet-20, MS blocks, 6 levels from code 1, without its rounding": kept,
    }
    rows = []
    for name, make in networks.items():
        snn, images = make()
        rows.append({"network": name} | measured(snn, images, exact=make is not kept))
        print(rows[-1], flush=True)
        options.out.write_text(json.dumps({"experiment": "nir", **provenance(SEED), "rows": rows}, indent=1) + "\n")


def measured(snn: spikezip.SNN, images: Tensor, exact: bool) -> dict[str, Any]:
    """Write, read, play here and in nirtorch: a row."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.nir"
        nir.write(file, snn.to_nir(exact=exact))
        graph, size = nir.read(file), file.stat().st_size
    played = compare(snn, graph, images)
    (given,) = currents(snn, images, played.steps)
    run = snn.run(images, played.steps, engine=spikezip.Engine.REFERENCE)
    network, state, far = nirtorch.nir_to_torch(graph, nirtorch_nodes(), dtype=torch.float64), None, 0.0
    with torch.no_grad():
        for now, wanted in zip(given, run.logits, strict=True):
            answer, state = network(now, state)
            far = max(far, float((answer.to(wanted.dtype) - wanted).abs().max()))
    return {
        "exact": exact,
        "images": len(images),
        "steps": played.steps,
        "spikes": played.spikes,
        "differing": played.differing,
        "answers_off_by": played.far,
        "answers_off_by_in_nirtorch": far,
        "nodes": len(graph.nodes),
        "mebibytes": round(size / 2**20, 1),
    }


if __name__ == "__main__":
    main()
