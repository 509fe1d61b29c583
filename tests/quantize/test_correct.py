"""Bias correction: behind its quantizer, every channel keeps the mean it has in the ANN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from random_networks import Drawn, shuffle_statistics
from spikezip import Morph, capture, convert, morph, quantize, verify
from spikezip.errors import StageError
from spikezip.quantize.correct import distance


class Net(nn.Module):
    """A convolution with BatchNorm, a residual sum, a convolution that is called twice, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.twice = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.second(x) + x)
        x = F.relu(self.twice(F.relu(self.twice(x))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(128, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ann(images: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return morph(capture(shuffle_statistics(Net()).eval(), images[:1]), Morph())


def values(network: fx.GraphModule, images: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What the named nodes hand on."""
    seen: dict[str, Tensor] = {}

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node):
            result = super().run_node(n)
            if n.name in names:
                seen[n.name] = result
            return result

    with torch.no_grad():
        Watching(network).run(images)
    return seen


def shifts(ann: fx.GraphModule, qann: fx.GraphModule, images: Tensor) -> dict[str, float]:
    """For every quantizer, how far its channels' means are from the ANN's, in the mean, as a share of their spread."""
    stands_for = {n.name: n.meta["stands_for"] for n in qann.graph.nodes if "stands_for" in n.meta}
    wanted, found = values(ann, images, list(stands_for.values())), values(qann, images, list(stands_for))
    gaps = {}
    for name, place in stands_for.items():
        means = [v.movedim(1, 0).flatten(1).mean(1) for v in (wanted[place], found[name])]
        gaps[place] = float((means[0] - means[1]).abs().mean() / wanted[place].std())
    return gaps


def test_channels_keep_their_means(ann: fx.GraphModule, images: Tensor):
    plain = shifts(ann, quantize(ann, 3, images), images)
    corrected = shifts(ann, quantize(ann, 3, images, correct_bias=True), images)
    assert len(plain) == 5
    first, second, *_ = plain
    assert all(plain[name] > 0.05 for name in (first, second))
    assert all(corrected[name] < plain[name] / 4 for name in (first, second))
    assert all(corrected[name] < plain[name] for name in plain), "no channel is led away"


def test_biases_alone_change_and_a_shared_one_does_not(ann: fx.GraphModule, images: Tensor):
    plain, corrected = quantize(ann, 3, images), quantize(ann, 3, images, correct_bias=True)
    before, after = dict(plain.named_parameters()), dict(corrected.named_parameters())
    moved = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n]) and not n.endswith("scale")}
    assert {"first", "second"} <= moved <= {"first", "second", "hidden"}
    assert all(torch.equal(before[n], after[n]) for n in before if n.endswith("weight"))


def test_the_network_given_is_untouched(ann: fx.GraphModule, images: Tensor):
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    quantize(ann, 3, images, correct_bias=True)
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())


def error(ann: fx.GraphModule, qann: fx.GraphModule, images: Tensor) -> float:
    with torch.no_grad():
        return float((qann(images) - ann(images)).square().mean())


@pytest.mark.parametrize("levels", [3, 4, 8])
def test_by_default_what_is_nearer_is_taken(ann: fx.GraphModule, images: Tensor, levels: int):
    errors = {c: error(ann, quantize(ann, levels, images, correct_bias=c), images) for c in (False, True, None)}
    assert errors[False] != errors[True]
    assert errors[None] == min(errors[False], errors[True])


def test_what_is_corrected_is_still_equal(images: Tensor):
    torch.manual_seed(0)
    snn = convert(shuffle_statistics(Net()).eval(), images[:1], iter(images.split(32)), levels=3, correct_bias=True)
    assert verify(snn, images[:16]).equal


def test_batches_of_unequal_size_where_images_are_no_first_dimension():
    """In attention a value holds images in its second dimension; they are no channels, and may differ in number."""
    x = torch.rand(40, 2, 5, 5, generator=torch.Generator().manual_seed(3))
    model = shuffle_statistics(Drawn(["attention"])).eval()
    parts = convert(model, x[:2], x.split(16), correct_bias=True)
    assert verify(parts, x).equal


def test_several_outputs_weigh_alike():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.body(x))
            return self.left(x), 100 * self.right(x)

    torch.manual_seed(0)
    x = torch.randn(64, 4)
    ann = morph(capture(Two().eval(), x[:1]), Morph())
    qann = quantize(ann, 4, x)
    with torch.no_grad():
        answers = zip(ann(x), qann(x), strict=True)
    parts = [float((a - q).square().sum() / a.square().sum()) for a, q in answers]
    assert distance(ann, qann, [(x[:40],), (x[40:],)]) == pytest.approx(sum(parts), rel=1e-4)
    assert distance(ann, ann, [(x,)]) == 0


@pytest.mark.parametrize("bits", [0, 1, False])
def test_no_bits_are_not_floats(bits):
    x = torch.rand(8, 4)
    with pytest.raises(StageError, match=f"weight_bits={bits}"):
        convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), x[:1], x, weight_bits=bits)
