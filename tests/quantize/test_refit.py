"""Refitted weights: each layer gives, on quantized inputs, what it gives in the ANN, as nearly as least squares can."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from random_networks import Drawn, shuffle_statistics
from spikezip import Morph, Residual, capture, convert, morph, quantize, verify
from spikezip.errors import StageError
from spikezip.morph import Activation, BatchNorm, Pooling
from spikezip.quantize.refit import distance


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


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return drawn(128, 2, 8, 8)


@pytest.fixture(scope="module")
def ann(images: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return morph(capture(shuffle_statistics(Net()).eval(), images[:1]), Morph())


@torch.no_grad()
def error(ann: fx.GraphModule, qann: fx.GraphModule, images: Tensor) -> float:
    return float((qann(images) - ann(images)).square().mean())


@pytest.mark.parametrize("levels", [3, 4, 8])
def test_outputs_of_images_never_seen_are_nearer(ann: fx.GraphModule, images: Tensor, levels: int):
    unseen = drawn(64, 2, 8, 8, seed=1)
    plain, refitted = (error(ann, quantize(ann, levels, images, refit=r), unseen) for r in (False, True))
    assert refitted < plain / 2


@pytest.mark.parametrize("levels", [3, 8])
def test_by_default_what_is_nearer_is_taken(ann: fx.GraphModule, images: Tensor, levels: int):
    errors = {r: error(ann, quantize(ann, levels, images, refit=r), images) for r in (False, True, None)}
    assert errors[False] != errors[True]
    assert errors[None] == min(errors[False], errors[True])


def test_a_layer_is_as_near_as_least_squares_bring_it():
    """The last layer hears quantized values alone, and nothing hides its outputs: the exact solution is known."""
    torch.manual_seed(0)
    x = torch.randn(4000, 6)
    ann = morph(capture(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), x[:1]), Morph())
    plain, refitted = (quantize(ann, 3, x[:1024], refit=r) for r in (False, True))
    with torch.no_grad():
        heard = torch.cat([F.relu(F.linear(x, *list(ann.parameters())[:2])), torch.ones(len(x), 1)], 1)
        heard[:, :-1] = next(m for m in plain.modules() if hasattr(m, "scale"))(heard[:, :-1])
        exact = torch.linalg.lstsq(heard[:1024], ann(x[:1024])).solution
        least = float((heard @ exact - ann(x))[1024:].square().mean())
    before, after = (error(ann, qann, x[1024:]) for qann in (plain, refitted))
    assert least <= after < least + (before - least) / 8


def test_what_a_relu_hides_is_not_fitted():
    """One 2 in 16 was a 5: behind 1 - x the ReLU hides the difference, and nothing is to be mended."""
    line = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    for name, values in zip("024", ((1.0, 0.0), (-1.0, 1.0), (1.0, 0.0)), strict=True):
        for parameter, value in zip(line.get_submodule(name).parameters(), values, strict=True):
            nn.init.constant_(parameter, value)
    x = torch.tensor([0.0, 1.0, 2.0, 2.0] * 15 + [0.0, 1.0, 2.0, 5.0]).repeat(4).reshape(-1, 1)
    ann = morph(capture(line, x[:1]), Morph())
    with torch.no_grad():
        drives = [_value(network, "linear_1", x).relu() for network in (ann, quantize(ann, 3, x, refit=True))]
    assert torch.allclose(drives[0], drives[1], atol=2e-3)


def test_a_sum_is_made_up_for_by_the_layer_in_it(ann: fx.GraphModule, images: Tensor):
    qann = quantize(ann, 4, images, refit=True)
    plain = quantize(ann, 4, images)
    name = next(n.name for n in ann.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    with torch.no_grad():
        wanted = _value(ann, name, images).relu()
        errors = [float((_value(network, name, images).relu() - wanted).square().mean()) for network in (qann, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_a_layer_with_exact_inputs_and_a_shared_one_keep_their_weights(ann: fx.GraphModule, images: Tensor):
    before, after = (dict(quantize(ann, 3, images, refit=r).named_parameters()) for r in (False, True))
    moved = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n]) and not n.endswith("scale")}
    assert moved == {"second", "hidden", "head"}


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model.get_submodule("4").weight = model.get_submodule("2").weight
    ann = morph(capture(model, x[:1]))
    qann, before = quantize(ann, 3, x, refit=True), model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in qann.named_parameters() if name in before)


def test_the_network_given_is_untouched(ann: fx.GraphModule, images: Tensor):
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    quantize(ann, 3, images, refit=True)
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())


class Blocks(nn.Module):
    """Residual blocks, the second with a convolutional shortcut, a max-pool, and an activation that is no ReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU())
        self.one, self.two = _branch(6, 6), _branch(6, 8)
        self.shortcut = nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        x = F.relu(self.one(x) + x)
        x = F.relu(self.two(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


def _branch(inputs: int, outputs: int) -> nn.Sequential:
    last = nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), last, nn.BatchNorm2d(outputs)
    )


CHANGES = [
    *(Morph(residual=wiring) for wiring in (Residual.RCR, Residual.MS)),
    Morph(pooling=Pooling.AVERAGE),
    Morph(activation=Activation.RELU),
    Morph(Pooling.AVERAGE, Activation.RELU, Residual.RCR),
]


@pytest.fixture(scope="module")
def original() -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(shuffle_statistics(Blocks()).eval(), drawn(1, 2, 6, 6))


@pytest.mark.parametrize("choice", CHANGES, ids=str)
def test_what_morphing_changed_is_made_up_for(original: fx.GraphModule, choice: Morph):
    images, unseen = drawn(64, 2, 6, 6), drawn(32, 2, 6, 6, seed=1)
    ann = morph(original, choice)
    qanns = quantize(ann, 8, images), quantize(ann, 8, images, refit=True)
    plain, to_itself = (error(original, qann, unseen) for qann in qanns)
    mended = error(original, quantize(ann, 8, images, refit=True, original=original), unseen)
    assert mended < 0.3 * min(plain, to_itself)


def test_another_original_is_refused(original: fx.GraphModule):
    images = drawn(8, 2, 6, 6)
    plain = morph(original)
    quantize(morph(plain, Morph(residual=Residual.RCR)), 8, images, original=plain)
    with pytest.raises(StageError, match="original is not the network that morph was given"):
        quantize(morph(original, Morph(residual=Residual.RCR)), 8, images, original=plain)


def test_a_live_batch_norm_is_no_hindrance(images: Tensor):
    torch.manual_seed(0)
    original = capture(shuffle_statistics(Net()).eval(), images[:1])
    live = morph(original, Morph(batch_norm=BatchNorm.LIVE))
    plain, refitted = (quantize(live, 4, images, refit=r, original=original) for r in (False, True))
    assert error(original, refitted, images) < error(original, plain, images) / 2


LAYERS = {
    "groups": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 5, 3)),
    "volume": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, 2)),
    "tokens": lambda: nn.Linear(6, 5),
    "product": lambda: _Product(),
}


class _Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_is_refitted(kind: str):
    torch.manual_seed(0)
    x = torch.randn(320, 1, 6, 6) + 0.3 * torch.randn(320, 3, 6, 6)
    ann = morph(capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), LAYERS[kind]()), x[:1]), Morph())
    plain, refitted = (error(ann, quantize(ann, 2, x[:256], refit=r), x[256:]) for r in (False, True))
    assert refitted < 0.98 * plain


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_images_to_judge_by_change_nothing(ann: fx.GraphModule, images: Tensor, count: int):
    plain, refitted = (dict(quantize(ann, 3, images[:count], refit=r).named_parameters()) for r in (False, True))
    assert all(torch.allclose(plain[n], refitted[n], rtol=1e-6) for n in plain)


def test_batches_make_no_difference(ann: fx.GraphModule, images: Tensor):
    whole, parts = (dict(quantize(ann, 3, data, refit=True).named_parameters()) for data in (images, images.split(36)))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_few_images_do_no_harm():
    """Eight images of noise say little about 200 inputs: what was held out ends the fit, and unseen images gain."""
    torch.manual_seed(0)
    x = torch.randn(264, 200)
    ann = morph(capture(nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 5)), x[:1]), Morph())
    plain, refitted = (error(ann, quantize(ann, 8, x[:8], refit=r), x[8:]) for r in (False, True))
    assert refitted < 1.1 * plain


def test_what_is_refitted_is_still_equal(images: Tensor):
    torch.manual_seed(0)
    snn = convert(shuffle_statistics(Net()).eval(), images[:1], iter(images.split(32)), levels=3, refit=True)
    assert verify(snn, images[:16]).equal


def test_batches_of_unequal_size_where_images_are_no_first_dimension():
    """In attention a value holds images in its second dimension, and batches may differ in number."""
    x = torch.rand(40, 2, 5, 5, generator=torch.Generator().manual_seed(3))
    model = shuffle_statistics(Drawn(["attention"])).eval()
    parts = convert(model, x[:2], x.split(16), refit=True)
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


class _Watching(fx.Interpreter):
    extra_traceback = False

    def __init__(self, network: fx.GraphModule, name: str):
        super().__init__(network, garbage_collect_values=False)
        self.name = name

    def run_node(self, n: fx.Node):
        result = super().run_node(n)
        if n.name == self.name:
            self.found = result
        return result


def _value(network: fx.GraphModule, name: str, images: Tensor) -> Tensor:
    watching = _Watching(network, name)
    watching.run(images)
    return watching.found
