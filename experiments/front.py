"""The Pareto front of one network: an ANN, then one SNN for each number of time steps, trained, certified, measured.

    python experiments/front.py --data-set cifar10 --network resnet20 --data PATH/TO/CIFAR
    python experiments/front.py --data-set cifar100 --network resnet18 --data PATH/TO/CIFAR     # trains its ANN first
    python experiments/front.py --data-set digits --network digits --ann-epochs 20 --epochs 6 --seeds 1   # to try it
    python experiments/front.py --only "for T=2" --seed 1 --train-only --data PATH/TO/CIFAR   # one of several at once
    python experiments/front.py --only "for T=2" --soup --data PATH/TO/CIFAR    # and the mean of the seeds' networks
    python experiments/front.py --only "for T=2" --start experiments/networks ...    # on from a network that was kept
    python experiments/front.py --only "for T=2" --start FOLDER --halfway ...    # and the mean of both ends
    python experiments/front.py --live --only "for T=2, MS" --data PATH/TO/CIFAR    # BatchNorm is folded at the end

Where the data set has published weights for the network they are the ANN; otherwise it is trained once, unless
``--ann`` gives its weights. Each product is fine-tuned from it for ``--epochs`` passes over the training images (less
those held out for validation, unless ``--all-images`` says that nothing is left to be chosen with them), given 8-bit
weights, and run on the test split once. On a GPU, where there is one: a small network does not fill it, so that several
calls with ``--train-only`` are best made at once, and then one without to measure. What is cut off goes on from its
checkpoint in runs/front; rows in experiments/results/front-DATASET-NETWORK.json are not made again.

``--keep FOLDER`` writes every product that is measured as an SNN for ``spikezip run``, and its trained weights as they
were before they became integers; ``--start FOLDER`` goes on from such weights: a mean's, or the first seed's. With
``--start-of "for T=2, MS, from code 1" 0.78`` they are those of another product, whose step sizes become finer.
``--halfway`` measures where such a training starts, and the mean of the two ends of each seed's (with
``--soup`` of the seeds' mean too), as well (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, with
their even weights).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cells import RESULTS, Cells, cost, fine_tuned, measured, share_right, shared_lines, spiking, untrained
from torch import nn

from spikezip.cli.sources import open_both, open_teacher, remember
from spikezip.graph.network import remark
from spikezip.measure.provenance import provenance
from spikezip.models import ModelSource
from spikezip.models.source import MODELS
from spikezip.train import Training, soup, train
from spikezip.train.checkpoint import write_tensors
from spikezip.train.recipe import Recipe, check_recipe

RUNS = Path("runs/front")
ENDS = ("halfway", "halfway, 0", "soup", 0)  #: what a kept file's name ends with, and --start looks for, in this order
TEACHER = {"distil": {"weight": 1.0, "temperature": 2.0}}


def for_step(t: int, **lines: Any) -> dict[str, Any]:
    """A network to be read at step ``t``: the codes that ``t`` steps reach from 0, released evenly over them."""
    return {
        "stage": "trajectory",
        "levels": {"lowest": 0, "highest": t},
        "encoding": f"even:{t}",
        "steps": [0] * (t - 1) + [1],
        "loss": TEACHER,
        **lines,
    }


def from_one(t: int) -> dict[str, Any]:
    """The same, with MS blocks, a pulse, and tracers that start at code 1, from where they reach one code more."""
    codes = {"lowest": 0, "highest": t + 1}
    return for_step(t, levels=codes, encoding="pulse", initial_code=1, morph={"residual": "ms"})


QAT: dict[str, Any] = {"stage": "qat", "levels": 8, "encoding": "even:8", "loss": TEACHER}
PET: dict[str, Any] = {
    **QAT,
    "stage": "pet",
    "paths": [{"rescaled": t, "release": 8} for t in (2, 4)],
    "loss": {"alpha": 0.5, **TEACHER},
}

#: What is trained, each with the lines of its recipe.
PRODUCTS: dict[str, dict[str, Any]] = {
    "for T=1": for_step(1),
    "for T=2": for_step(2),
    "for T=2, RCR": for_step(2, morph={"residual": "rcr"}),
    "for T=2, MS": for_step(2, morph={"residual": "ms"}),
    "for T=4": for_step(4),
    "for T=4, RCR": for_step(4, morph={"residual": "rcr"}),
    "for T=4, MS": for_step(4, morph={"residual": "ms"}),
    "for T=1, MS, from code 1": from_one(1),
    "for T=2, MS, from code 1": from_one(2),
    "for T=4, MS, from code 1": from_one(4),
    "anytime, T=1 to 4": for_step(4, steps=[1, 1, 1, 1], settled=1),
    "anytime, MS, from code 1": {**from_one(2), "steps": [1, 1, 1, 1], "settled": 1},
    "PET, 8 levels": PET,
    "PET, RCR, 8 levels": {**PET, "morph": {"residual": "rcr"}},
    "plain QAT, 8 levels": QAT,
    "plain QAT, RCR, 8 levels": {**QAT, "morph": {"residual": "rcr"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", choices=["digits", "cifar10", "cifar100"], default="cifar10")
    parser.add_argument("--network", choices=sorted(MODELS), default="resnet20")
    parser.add_argument("--ann", type=Path, metavar="FILE", help="the ANN's weights; else published, or trained")
    parser.add_argument("--ann-epochs", type=int, default=200, help="where an ANN must be trained")
    parser.add_argument("--epochs", type=int, default=60, help="of each product")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch; on a CPU 64 images are fast")
    parser.add_argument("--cooldown", type=int, nargs=2, metavar=("AFTER", "EPOCHS"), help="end a training early")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument("--ema", type=float, help="decay of a moving average of the weights, which is what is kept")
    parser.add_argument(
        "--live", action="store_true", help="train BatchNorm too, one for all steps or paths; fold it then"
    )
    parser.add_argument("--mixed", action="store_true", help="learn the teacher's answers on mixtures of two images")
    parser.add_argument("--refit", action="store_true", help="begin with weights refitted to the ANN")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="of the forward pass in training")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--teacher", choices=sorted(MODELS), help="a network to learn from, not the ANN")
    parser.add_argument("--teacher-weights", type=Path, metavar="FILE", help="its weights, if not the published ones")
    parser.add_argument(
        "--distil", type=float, nargs=2, metavar=("WEIGHT", "TEMPERATURE"), help="of the teacher's answers (1.0 2.0)"
    )
    parser.add_argument("--validation-images", type=int, help="after each epoch, only the first so many")
    parser.add_argument("--all-images", action="store_true", help="train on those held out for validation too")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--train-only", action="store_true", help="measure later, and write no row now")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write what is measured there, with its weights")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="go on from weights that were kept there")
    parser.add_argument(
        "--start-of",
        nargs=2,
        metavar=("PRODUCT", "FACTOR"),
        help="which of the kept weights: another product's, its step sizes times FACTOR",
    )
    parser.add_argument("--soup", action="store_true", help="measure the mean of all seeds' weights too")
    parser.add_argument("--halfway", action="store_true", help="measure the --start too, and each seed's mean with it")
    parser.add_argument("--only", nargs="*", default=[], help="only the products whose name holds one of these")
    parser.add_argument("--test-images", type=int, help="only the first so many")
    parser.add_argument("--data", type=Path, help="folder with the CIFAR files and pretrained weights")
    parser.add_argument("--out", type=Path, help="the file of results, if it is to be another")
    options = parser.parse_args()
    if options.soup and (options.train_only or options.seed is not None):
        parser.error("--soup measures the mean of all seeds: leave out --seed and --train-only.")
    if options.halfway and (options.train_only or not options.start):
        parser.error("--halfway measures the mean of what was trained and its --start: give one, and no --train-only.")
    if options.refit and options.start:
        parser.error("--refit fits the ANN's weights, and --start brings others: give one of both.")
    if options.live and options.start:
        parser.error("--start brings weights that BatchNorm has been folded into: leave out --live.")
    if options.start_of and not options.start:
        parser.error("--start-of says whose weights to take: give the folder as --start.")
    if options.teacher_weights and not options.teacher:
        parser.error("--teacher-weights are those of a --teacher: give both.")
    if options.keep and options.start and options.keep.resolve() == options.start.resolve():
        parser.error("--keep would replace the weights that --start goes on from: give another folder.")
    subject = f"{options.data_set}-{options.network}"
    ways = {"further": options.start, "live": options.live, "refit": options.refit, "mixed": options.mixed}
    name = "-".join(filter(None, (subject, options.teacher, *(way for way, taken in ways.items() if taken))))
    out = options.out or RESULTS / f"front-{name}.json"
    settings = {
        "data": options.data_set,
        "network": f"spikezip:{options.network}",
        **{key: getattr(options, key) for key in ("epochs", "batch", "rate", "test_images")},
    }
    if options.teacher or options.precision != "no":  # files from before there were these stay as they are
        settings |= {"teacher": options.teacher, "precision": options.precision}
    if options.teacher_weights:
        settings["teacher_weights"] = str(options.teacher_weights)
    if options.distil:
        settings["distil"] = options.distil
    if options.start:
        settings["start"] = str(options.start)
    if options.start_of:
        settings["start_of"] = options.start_of
    if options.all_images:
        settings["train_split"] = "trainval"
    settings |= {way: True for way in ("live", "refit", "mixed") if ways[way]}
    how = {key: getattr(options, key) for key in ("accumulate", "compile", "validation_images")}
    published = options.data_set == "cifar10" and MODELS[options.network].pretrained is not None
    ann_weights = str(options.ann) if options.ann else "pretrained" if published else None
    source, data = open_both(
        f"spikezip:{options.network}",
        options.data_set,
        weights=ann_weights,
        classes=None,
        image_size=None,
        root=options.data,
    )
    if ann_weights is None:
        lines = {"epochs": options.ann_epochs, "batch": options.batch, "precision": options.precision, **how}
        train_ann(source, data, lines, RUNS / name / "ann")
    settings["ann_epochs"] = None if ann_weights else options.ann_epochs
    if options.ann:
        settings["ann"] = ann_weights
    anns = {"ann": source.module}
    if options.teacher:
        weights = str(options.teacher_weights) if options.teacher_weights else "pretrained"
        anns["teacher"] = open_teacher(f"spikezip:{options.teacher}", weights, data, options.data)
    facts: dict[str, float] = {}
    for role, network in anns.items() if not options.train_only else ():
        facts[role] = share_right(network, *data.tensors("test", options.test_images))
        print(f"{role} {100 * facts[role]:.2f}", flush=True)
    cells = Cells(out, settings, parser, experiment="front", **facts)
    extra: dict[str, Any] = {}
    if options.cooldown:
        extra["cooldown"] = dict(zip(("after", "epochs"), options.cooldown, strict=True))
    if options.precision != "no":
        extra["precision"] = options.precision
    if options.ema is not None:
        extra["ema"] = options.ema
    if options.refit:
        extra["refit"] = True
    if options.all_images:
        extra |= {"train_split": "trainval", "validation_split": None}
    teacher = anns.get("teacher")
    products = {product: {**lines, **extra} for product, lines in PRODUCTS.items()}
    for lines in products.values() if options.live else ():
        lines["morph"] = {**lines.get("morph", {}), "batch_norm": "live"}
        lines |= {"statistics": "shared"} if lines["stage"] == "pet" else {}
    distil: dict[str, Any] = dict(TEACHER["distil"])
    if options.distil:
        distil |= zip(("weight", "temperature"), options.distil, strict=True)
    if options.mixed:
        distil["mixed"] = True
    for lines in products.values() if distil != TEACHER["distil"] else ():
        lines["loss"] = {**lines["loss"], "distil": distil}

    def asked(product: str, seed: int) -> tuple[Recipe, Path]:
        """The recipe of a training, and its folder."""
        lines = {**products[product], **how}
        if options.start:
            of, factor = options.start_of or (product, 1)
            weights = [options.start / f"{subject}-{plain(f'{of}, {which}')}.safetensors" for which in ENDS]
            start = next((path for path in weights if path.exists()), weights[-1])
            if options.start_of:
                lines["start_scale"] = float(factor)
            lines["start"] = str(start)
        return recipe_of(product, lines, settings, seed), RUNS / name / f"{plain(product)}-{seed}"

    def finish(
        row: str, product: str, seed: int, recipe: Recipe, network: nn.Module, trainings: list[Training], file: str
    ) -> None:
        """Measure what some trainings gave; keep it, with a word on how it was made, if asked."""
        remember(network, source.name, data)
        snn = spiking(network, recipe)
        found = {**measured(snn, data, settings), **cost(recipe, trainings)}
        cells.keep(row, products[product], seed, found)
        if options.keep:
            path = options.keep / f"{subject}-{plain(file)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {key: str(value) for key, value in {**provenance(None), **settings, "variant": row}.items()}
            write_tensors(dict(network.state_dict()), path.with_suffix(".safetensors"), about)
            snn.save(path.with_suffix(".spikezip"))

    for product, _, seed in cells.missing(products, options.seeds, options.only):
        if options.seed not in (None, seed):
            continue
        recipe, folder = asked(product, seed)
        done = fine_tuned(source.module, source, data, recipe, folder, teacher)
        if not options.train_only:
            finish(product, product, seed, recipe, done.network, [done], f"{product}, {seed}")
    for mean in means_of(options):
        for product in products:
            row = f"{product}, {mean.row}"
            wanted = cells.missing({row: products[product]}, options.seeds, options.only)
            if mean.seed not in [seed for _, _, seed in wanted]:
                continue
            recipes = [asked(product, seed) for seed in mean.trained]
            trainings = [fine_tuned(source.module, source, data, recipe, folder, teacher) for recipe, folder in recipes]
            networks = [soup([training.network for training in trainings])] if trainings else []
            recipe, _ = asked(product, mean.seed)
            if mean.start:
                networks.append(untrained(source.module, source, data, recipe))
                remark(networks[-1], initial_code=recipe.initial_code)  # as the training does
            finish(row, product, mean.seed, recipe, soup(networks), trainings, f"{product}, {mean.file}")


class Mean(NamedTuple):
    """A network that is measured beside the trained ones: their mean, their start, or between both."""

    row: str
    seed: int
    trained: list[int]  #: seeds whose mean it is
    start: bool  #: with half the weight, or all where nothing was trained
    file: str  #: how the name of what is kept ends


def means_of(options: argparse.Namespace) -> Iterator[Mean]:
    """What ``--soup`` and ``--halfway`` ask for."""
    seeds, whole = list(range(options.seeds)), f"soup of {options.seeds}"
    if options.soup:
        yield Mean(whole, 0, seeds, False, "soup")
    if options.halfway:
        yield Mean("its start", 0, [], True, "start")
        for seed in seeds if options.seed is None else [options.seed]:
            yield Mean("halfway to its start", seed, [seed], True, f"halfway, {seed}")
    if options.soup and options.halfway:
        yield Mean(f"{whole}, halfway to its start", 0, seeds, True, "halfway")


def train_ann(source: ModelSource, data: Any, lines: dict[str, Any], folder: Path) -> None:
    """Train the network of ``source`` in place, or take what an earlier run left in ``folder``."""
    recipe = check_recipe(
        {
            "name": "ann",
            "stage": "ann",
            "model": source.name,
            "data": data.name,
            "warmup": 1,
            "optimizer": {"sgd": {"rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}},
            **lines,
        }
    )
    trained = train(source.module, data, recipe.plan(), out=folder, resume=True)
    source.module.load_state_dict(trained.network.state_dict())


def plain(name: str) -> str:
    """A name as part of a file's."""
    return "-".join(re.findall(r"\w+", name))


def recipe_of(name: str, lines: dict[str, Any], settings: dict[str, Any], seed: int) -> Recipe:
    """The whole recipe of one product."""
    return check_recipe({**shared_lines(name, settings, seed), "warmup": 0.5, **lines})


if __name__ == "__main__":
    main()
