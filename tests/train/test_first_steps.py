"""Weights fitted for an SNN's first steps: what the layers are fitted on is what the SNN's neurons hold there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from random_networks import Drawn, shuffle_statistics
from spikezip import Morph, Residual, capture, convert, morph, quantize, spike, verify
from spikezip.errors import StageError
from spikezip.levels import Levels
from spikezip.quantize import Quantizer
from spikezip.run import execute
from spikezip.spike import Constant, Even, Pulse
from spikezip.train import fit_first_steps
from spikezip.train.recipe import check_recipe

THREE = Levels(0, 3)


class Net(nn.Module):
    """Convolutions with BatchNorm, a residual sum, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.third = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.third(F.relu(self.second(x))) + x)
        return self.head(x.mean((2, 3)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return drawn(128, 2, 6, 6)


@pytest.fixture(scope="module")
def original() -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(shuffle_statistics(Net()).eval(), drawn(1, 2, 6, 6))


def fitted(original: fx.GraphModule, images: Tensor, *given: Any, **options: Any) -> fx.GraphModule:
    qann = quantize(morph(original, Morph(residual=Residual.MS)), THREE, original=original)
    fit_first_steps(qann, original, images, *given, **options)
    return qann


@torch.no_grad()
def errors(original: fx.GraphModule, qann: fx.GraphModule, steps: int, encoding=Pulse(), code: int = 0) -> list[float]:
    """Mean squared distance from the ANN at steps 1 to ``steps``, and once settled, on images never seen."""
    unseen = drawn(64, 2, 6, 6, seed=1)
    snn = spike(qann, encoding, initial_code=code)
    outputs = [*execute(snn, (unseen,), steps).logits, qann(unseen)]
    return [float((output - original(unseen)).square().mean()) for output in outputs]


@pytest.mark.parametrize(
    ("residual", "code", "levels"),
    [
        (Residual.VANILLA, 0, THREE),
        (Residual.RCR, 0, THREE),
        (Residual.MS, 0, THREE),
        (Residual.MS, 1, Levels(0, 7)),  # with fewer nothing would lag at step 2
    ],
)
def test_the_steps_that_count_come_nearer(original, images: Tensor, residual: Residual, code: int, levels: Levels):
    ann = morph(original, Morph(residual=residual))
    settled = errors(original, quantize(ann, levels, images, refit=True, original=original), 2, code=code)
    counted: list[tuple[tuple[float, float], float]] = [((0, 1), 0), ((1, 1), 0), ((1, 1), 1)]
    found = []
    for steps, too in counted:
        qann = quantize(ann, levels, original=original)
        fit_first_steps(qann, original, images, steps, settled=too, initial_code=code)
        found.append(errors(original, qann, 2, code=code))
    second, both, all_three = found
    assert second[1] < 0.7 * settled[1]
    assert both[0] < min(settled[0], second[0])
    assert both[1] < settled[1]
    assert all_three[2] < both[2]


def test_an_even_release_whose_biases_arrive_in_parts(original: fx.GraphModule, images: Tensor):
    plain = quantize(morph(original), THREE, images, refit=True)
    plain, early = (errors(original, q, 2, Even(2)) for q in (plain, fitted(original, images, (0, 1), Even(2))))
    assert early[1] < 0.7 * plain[1]


def test_the_last_layer_is_as_near_as_least_squares_on_the_snns_own_spikes_bring_it():
    """An independent reading of what neurons hold at step 2, and the exact solution on it."""
    torch.manual_seed(0)
    x = torch.randn(4000, 6)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3))
    original = capture(model, x[:1])
    qann = quantize(morph(original), THREE, original=original)
    fit_first_steps(qann, original, x[:512], (0, 1))
    neurons = [m for m in qann.modules() if isinstance(m, Quantizer)]
    weights = [w for name, w in qann.named_parameters() if not name.endswith("scale")]
    held = _at_step_two(x, weights[:4], [float(n.scale.detach()) for n in neurons])
    with torch.no_grad():
        heard = torch.cat([held, torch.ones(len(x), 1)], 1)
        exact = torch.linalg.lstsq(heard[512:], original(x[512:])).solution
        least = float((heard @ exact - original(x))[512:].square().mean())
        at_two = execute(spike(qann), (x,), 2).logits[1]
        before = float((F.linear(held, model[4].weight, model[4].bias) - original(x))[512:].square().mean())
        after = float((at_two - original(x))[512:].square().mean())
    assert torch.allclose(at_two, F.linear(held, *weights[4:]), atol=1e-5)
    sampled = 1 + 2 * heard.shape[1] / 384  # three quarters of the images are fitted: what so few lose, twice
    assert least <= after < sampled * least + (before - least) / 8


@torch.no_grad()
def _at_step_two(x: Tensor, weights: list[Tensor], scales: list[float]) -> Tensor:
    """Tracers of two layers, from code 0, a step of one code each, two steps of a pulse."""
    inputs = [x, x]
    for weight, bias, scale in zip(weights[::2], weights[1::2], scales, strict=True):
        code, inputs_next = torch.zeros(1), []
        for step in inputs:
            goal = torch.floor(F.linear(step, weight, bias) / scale + 0.5).clamp(0, 3)
            code = code + (goal - code).clamp(-1, 1)
            inputs_next.append(code * scale)
        inputs = inputs_next
    return inputs[1]


def test_only_the_proportions_of_weights_count(original: fx.GraphModule, images: Tensor):
    one, two = (fitted(original, images, steps).state_dict() for steps in ((1, 1), (0.5, 0.5)))
    assert all(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one)


def test_scales_are_for_codes_that_can_be_reached(original: fx.GraphModule, images: Tensor):
    """From code 0, a step reaches code 1: with any more levels the network is the same."""
    many = quantize(morph(original), Levels(0, 15), original=original)
    few = copy.deepcopy(many)
    for quantizer in (m for m in few.modules() if isinstance(m, Quantizer)):
        quantizer.levels = Levels(0, 1)
    for qann in (many, few):
        fit_first_steps(qann, original, images, (1,))
    before, after = (dict(qann.named_parameters()) for qann in (few, many))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


@pytest.mark.parametrize("block", ["attention", "squeeze and excitation", "joins", "pooling"])
def test_other_networks(block: str):
    x = torch.rand(40, 2, 5, 5, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)  # for the statistics
    snn = convert(shuffle_statistics(Drawn([block])).eval(), x[:2], x.split(16), fit_steps=(0, 1, 1))
    assert verify(snn, x).equal


def test_what_settles_is_equal(images: Tensor):
    torch.manual_seed(0)
    model = shuffle_statistics(Net()).eval()
    choice = Morph(residual=Residual.MS)
    snn = convert(model, images[:1], images, levels=4, morph=choice, initial_code=1, fit_steps=(0, 1))
    assert verify(snn, images[:32]).equal
    assert snn.initial_code == 1
    same = convert(model, images[:1], images, levels=4, morph=choice, initial_code=1, fit_steps=range(2))
    assert torch.equal(same.qann(images), snn.qann(images)), "any sequence of weights"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": ()}, "give one for each step, as .*, 0 or more, and not 0 all of them"),
        ({"steps": 2}, "The steps. weights are 2"),
        ({"steps": (0, 0)}, "not 0 all of them"),
        ({"steps": (1, -1)}, "0 or more"),
        ({"steps": (1, 1), "encoding": Even(2)}, r"At step 1 the input has not all arrived with Even\(release=2\)"),
        ({"steps": (0, 1), "encoding": Constant()}, "At step 2 the input has not all arrived"),
        ({"steps": (0, 1), "initial_code": 9}, "initial_code=9"),
    ],
)
def test_what_cannot_be_fitted_is_refused(original: fx.GraphModule, images: Tensor, given, message: str):
    with pytest.raises(StageError, match=message):
        fitted(original, images[:8], **given)


@pytest.mark.parametrize("other", [{"refit": False}, {"slew": 2}, {"bias_encoding": Even(2)}, {"initial_code": "mean"}])
def test_convert_refuses_what_goes_another_way(images: Tensor, other):
    with pytest.raises(StageError, match=f"fit_steps does not go together with this {next(iter(other))}"):
        convert(Net().eval(), images[:1], images, fit_steps=(0, 1), **other)


def test_a_recipe_for_a_trajectory_begins_with_them(original: fx.GraphModule, images: Tensor):
    lines = {"name": "x", "model": "m", "data": "d", "levels": {"lowest": 0, "highest": 3}, "refit": True}
    trajectory = {**lines, "stage": "trajectory", "steps": [0, 1], "initial_code": 1}
    ann = morph(original, Morph(residual=Residual.MS))

    def begun(lines: dict[str, Any]) -> dict[str, Tensor]:
        return check_recipe(lines).quantized(ann, original, images).state_dict()

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in other)

    early = fitted(original, images, (0, 1), initial_code=1).state_dict()
    settled = quantize(ann, THREE, images, refit=True, original=original).state_dict()
    assert same(begun(trajectory), early)
    assert same(begun({**lines, "stage": "qat"}), settled)
    assert same(begun({**trajectory, "steps": [1, 1], "encoding": "even:2"}), settled)
    assert not same(early, settled)


def test_steps_that_cannot_share_a_batch_are_refused_as_such():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            pixels = F.relu(self.conv(x)).permute(2, 0, 3, 1).reshape(-1, 4)
            return self.out(pixels).view(8, x.shape[0], 8, 3).mean((0, 2))

    images = torch.randn(8, 3, 8, 8)
    with pytest.raises(StageError, match=r"view.*merges the batch .* its first steps cannot .* leave fit_steps out"):
        convert(Between(), images[:1], images, fit_steps=(0, 1))
