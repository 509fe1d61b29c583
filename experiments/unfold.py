"""BatchNorm made anew in a network that was kept folded, so that it can be trained on with BatchNorm live.

    python experiments/unfold.py experiments/recipes/cifar10-resnet20-t4-live.yaml FOLDED.safetensors LIVE.safetensors \
        --data PATH/TO/CIFAR

The recipe is that of the training that the folded network came from. Each BatchNorm gets the statistics of its input
over training images, at all the steps that the recipe unrolls, and a weight and bias by which both networks compute the
same::

    y = x + b = sqrt(var + eps) (x - mean) / sqrt(var + eps) + (mean + b)

LIVE.safetensors is what a recipe's ``start:`` takes. Written over only with ``--overwrite``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import spikezip
from spikezip.cli.sources import open_both
from spikezip.graph import network, ops
from spikezip.models.weights import load_weights
from spikezip.morph import Morph
from spikezip.morph.fold import LiveBatchNorm, fold_batch_norm
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike import parse_encoding
from spikezip.train.recipe import Stage, read_recipe
from spikezip.train.trajectory import unroll

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folded", type=Path)
    parser.add_argument("live", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=2048, help="training images that statistics are taken on")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    if options.live.exists() and not options.overwrite:
        parser.error(f"{options.live} exists. Give --overwrite, or another name.")
    recipe = read_recipe(options.recipe)
    if recipe.stage is not Stage.TRAJECTORY:
        parser.error(f"{options.recipe} is of stage {recipe.stage.value}; give one of stage trajectory.")
    torch.manual_seed(recipe.seed)
    source, images = open_both(
        recipe.model, recipe.data, weights=recipe.weights, classes=None, image_size=None, root=options.data
    )
    shown = images.calibration(options.images, recipe.seed)
    original = spikezip.capture(source.module, source.example)
    ann = spikezip.morph(original, Morph(**dict(recipe.morph)))
    live = recipe.quantized(ann, original, images.calibration(recipe.calibration, recipe.seed))
    folded = network.copied(live)
    fold_batch_norm(folded)
    load_weights(folded, options.folded)

    norms = take_over(live, folded)
    encoding = parse_encoding(recipe.encoding)
    unrolled = unroll(live, len(recipe.steps), encoding, settled=recipe.settled > 0, initial_code=recipe.initial_code)
    standardize(unrolled, norms, shown)

    again = network.copied(live)
    fold_batch_norm(again)
    worst = max(
        float((a - b).detach().abs().max()) for a, b in zip(again.parameters(), folded.parameters(), strict=True)
    )
    header = {
        "pixels": json.dumps({"mean": list(images.mean), "std": list(images.std)}),
        "unfolded": options.folded.name,
    }
    save_file({name: tensor.contiguous() for name, tensor in live.state_dict().items()}, options.live, header)
    print(f"{len(norms)} BatchNorms; folded anew, no weight is off by more than {worst:.1e}. Wrote {options.live}.")


def take_over(live: fx.GraphModule, folded: fx.GraphModule) -> list[LiveBatchNorm]:
    """Give a network with BatchNorms the weights of one without, and its biases to the BatchNorms: all of them."""
    norms = []
    for one, other in zip(layers(live), layers(folded), strict=True):
        value, wanted = (network.get_tensor(gm, ops.weight_of(n).target) for gm, n in ((live, one), (folded, other)))
        bias = network.get_tensor(folded, other.args[ops.bias_index(other)].target)
        reader = next(iter(one.users))
        norm = live.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        with torch.no_grad():
            value.copy_(wanted)
            if isinstance(norm, LiveBatchNorm):
                norms.append(norm)
                norm.running_mean.zero_()
                norm.running_var.fill_(1.0)
                norm.weight.fill_((1 + norm.eps) ** 0.5)
                norm.bias.copy_(bias)
            else:
                network.get_tensor(live, one.args[ops.bias_index(one)].target).copy_(bias)
    for name, module in live.named_modules():
        if isinstance(module, Quantizer):
            module.load_state_dict(folded.get_submodule(name).state_dict())
    return norms


def layers(gm: fx.GraphModule) -> list[fx.Node]:
    """Layers with weights, in the order in which they are computed."""
    return [node for node in gm.graph.nodes if node.op == "call_function" and ops.weight_of(node) is not None]


def standardize(model: nn.Module, norms: list[LiveBatchNorm], images: Tensor) -> None:
    """Give BatchNorms the statistics of their inputs, and a weight and bias by which they compute what they did."""
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: LiveBatchNorm, given: tuple[Tensor, ...]) -> None:
        rows = given[0].double().transpose(0, 1).flatten(1)
        sums[norm] += torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), rows.sum(1), rows.square().sum(1)])

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    with torch.no_grad():
        for batch in images.split(BATCH):
            model.eval()(batch)
        for norm, (count, total, squares) in sums.items():
            mean = total / count
            var = squares / count - mean.square()
            factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            norm.bias.copy_(norm.bias + factor * (mean - norm.running_mean))
            norm.weight.copy_(factor * (var + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
    for hook in hooks:
        hook.remove()


if __name__ == "__main__":
    main()
