"""An SNN for few steps without training: weights and scales fitted, without labels, for the steps that are to count.

    python experiments/first_steps.py --data PATH/TO/CIFAR
    python experiments/first_steps.py --data-set cifar100 --data PATH/TO/CIFAR
    python experiments/first_steps.py --network resnet56 --only "t = 1 to 4" --data PATH/TO/CIFAR

Every row is the published network (of CIFAR-100, the ANN in experiments/networks) converted from 512 training images,
which the seed draws, with 8-bit weights and tracers that start at code 1; run on all test images and certified. Kept
row by row in experiments/results/first-steps-DATASET-NETWORK.json; rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, Cells, measured, share_right

import spikezip
from spikezip.cli.sources import open_both
from spikezip.morph import Morph, Residual

ANN_100 = Path(__file__).parent / "networks" / "cifar100-resnet20-ann.safetensors"
IMAGES = 512

#: Residual blocks, the highest code, and how much steps 1, 2, ... count; None: the settled answer alone.
VARIANTS: dict[str, dict[str, Any]] = {
    "settled, 4 levels": {"residual": "ms", "highest": 3, "fit_steps": None},
    "t = 2": {"residual": "ms", "highest": 3, "fit_steps": [0, 1]},
    "t = 1 and 2": {"residual": "ms", "highest": 3, "fit_steps": [1, 1]},
    "settled, 5 levels": {"residual": "ms", "highest": 4, "fit_steps": None},
    "t = 1 to 4": {"residual": "ms", "highest": 4, "fit_steps": [1, 1, 1, 1]},
    "t = 4": {"residual": "ms", "highest": 4, "fit_steps": [0, 0, 0, 1]},
    "t = 2, RCR": {"residual": "rcr", "highest": 3, "fit_steps": [0, 1]},
    "t = 2, blocks as trained": {"residual": "vanilla", "highest": 3, "fit_steps": [0, 1]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--only", nargs="*", default=[], help="only the variants whose name holds one of these")
    parser.add_argument("--test-images", type=int, help="only the first so many")
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    options = parser.parse_args()
    settings = {"data": options.data_set, "network": f"spikezip:{options.network}", "test_images": options.test_images}
    source, data = open_both(
        settings["network"],
        options.data_set,
        weights=str(ANN_100) if options.data_set == "cifar100" else "pretrained",
        classes=None,
        image_size=None,
        root=options.data,
    )
    ann = share_right(source.module, *data.tensors("test", options.test_images))
    path = RESULTS / f"first-steps-{options.data_set}-{options.network}.json"
    cells = Cells(path, settings, parser, experiment="first-steps", ann=ann)
    for variant, lines, seed in cells.missing(VARIANTS, options.seeds, options.only):
        torch.manual_seed(seed)
        start = time.process_time()
        snn = spikezip.convert(
            source.module,
            source.example,
            data.calibration(IMAGES, seed),
            levels=spikezip.Levels(0, lines["highest"]),
            morph=Morph(residual=Residual(lines["residual"])),
            initial_code=1,
            fit_steps=lines["fit_steps"],
        )
        seconds = time.process_time() - start
        cells.keep(variant, lines, seed, {**measured(snn, data, settings), "processor_seconds": seconds})


if __name__ == "__main__":
    main()
