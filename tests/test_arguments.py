"""What is no number of images, no encoding, no code or no SNN is refused by the name that the caller gave it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spikezip
from spikezip.errors import CalibrationError, CaptureError, InputError, StageError
from spikezip.measure import mean_codes
from spikezip.quantize.calibrate import best_scale

IMAGES = torch.rand(32, 4, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def snn() -> spikezip.SNN:
    return spikezip.convert(model(), IMAGES[:1], IMAGES)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_is_a_number_of_images(snn, limit):
    for call in (mean_codes, spikezip.calibrate):
        with pytest.raises(CalibrationError, match=r"^limit=.*whole number of images"):
            call(snn.qann, IMAGES, limit=limit)


@pytest.mark.parametrize("data", [None, 5])
def test_calibration_data_is_data(data):
    with pytest.raises(CalibrationError, match="Pass a few hundred inputs"):
        spikezip.convert(model(), IMAGES[:1], data)


def test_one_image_is_no_example():
    with pytest.raises(InputError, match=r"images\[:1\] and not images\[0\]"):
        spikezip.convert(model(), IMAGES[0], IMAGES)


def test_a_copy_elsewhere_is_the_same_network(snn):
    there = snn.to("cpu")
    assert there.graph is not snn.graph
    assert torch.equal(there.run(IMAGES).logits, snn.run(IMAGES).logits)
    assert all(tensor.is_meta for tensor in snn.to("meta").graph.state_dict().values())


def test_an_encoding_is_given(snn):
    with pytest.raises(StageError, match="None is no encoding"):
        spikezip.spike(snn.qann, None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (8, "initial_code=8 is above all codes of layers without .*; the highest is 7"),
        (99, "initial_code=99 is above"),
        ({"1": torch.tensor(1.5)}, "initial code of layer '1' is 1.5"),
        ({}, "none for layer '1'"),
    ],
)
def test_an_initial_code_is_one_of_the_network(snn, code, words):
    qann = snn.qann
    with pytest.raises(StageError, match=words):
        spikezip.spike(qann, initial_code=code)
    assert spikezip.spike(qann, initial_code=7).initial_code == 7


def test_energy_models_may_be_named(snn):
    record = spikezip.measure(snn, IMAGES[:4], energy_models=["lemaire-2022"])
    assert [found["name"] for found in record["energy"]["models"]] == ["lemaire-2022"]
    with pytest.raises(InputError, match="There is no energy model 'lemaire'"):
        spikezip.measure(snn, IMAGES[:4], energy_models=["lemaire"])
    with pytest.raises(InputError, match=r"give a sequence, such as \['lemaire-2022'\]"):
        spikezip.measure(snn, IMAGES[:4], energy_models="lemaire-2022")
    with pytest.raises(StageError, match="energy_images=0"):
        spikezip.measure(snn, IMAGES[:4], energy_images=0)


def test_a_qann_is_no_snn(snn):
    def calls(given: object, images: Tensor):
        yield lambda: spikezip.audit(given)  # pyright: ignore[reportArgumentType]
        yield lambda: spikezip.verify(given, images)  # pyright: ignore[reportArgumentType]
        yield lambda: spikezip.measure(given, images)  # pyright: ignore[reportArgumentType]

    for call in calls(snn.qann, IMAGES):
        with pytest.raises(StageError, match=r"no SNN, but a GraphModule. Call spike\(\)"):
            call()


def test_each_network_on_the_way_is_told():
    told = {}
    snn = spikezip.convert(model(), IMAGES[:1], IMAGES, on_stage=told.__setitem__)
    assert list(told) == ["ANN", "QANN", "integer QANN"]
    assert torch.equal(told["ANN"](IMAGES), model()(IMAGES))
    assert torch.equal(told["integer QANN"](IMAGES), snn.qann(IMAGES))
    assert not torch.equal(told["QANN"](IMAGES), snn.qann(IMAGES)), "floats, still"
    floats = {}
    spikezip.convert(model(), IMAGES[:1], IMAGES, weight_bits=None, on_stage=floats.__setitem__)
    assert list(floats) == ["ANN", "QANN"]


def test_the_mean_of_many_numbers_that_are_on_no_grid_is_not_cut_off():
    """Interpolated codes are rounded to fixed point behind a sum whose reach follows from the mean's."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            larger = nn.functional.interpolate(self.conv(x).relu(), scale_factor=2, mode="bilinear")
            return self.out(larger.mean((2, 3)))

    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32) + torch.randn(32, 3, 1, 1)
    network = Net().eval()
    snn = spikezip.convert(network, images[:1], images, levels=8)
    with torch.no_grad():
        wanted = network(images)
    away = (snn.qann(images) - wanted).square().mean().sqrt() / wanted.std()
    assert away < 0.1
    assert spikezip.verify(snn, images).equal


@pytest.mark.parametrize("factor", [1e-23, 1.0, 1e20])
def test_a_scale_is_found_whatever_the_size_of_values(factor):
    values = torch.rand(10000, generator=torch.Generator().manual_seed(0))
    scale = best_scale(values * factor, spikezip.Levels(0, 7)) / factor
    assert scale == pytest.approx(best_scale(values, spikezip.Levels(0, 7)), rel=1e-5)


def test_answers_of_yes_and_no_are_measured_without_accuracy():
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) > 0

    snn = spikezip.convert(Answers(), IMAGES[:1], IMAGES)
    assert spikezip.measure(snn, IMAGES).content


def test_capturing_leaves_the_generator_alone():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x)

    before = torch.get_rng_state()
    with pytest.raises(CaptureError):
        spikezip.capture(Noisy(), IMAGES[:2])
    assert torch.equal(torch.get_rng_state(), before)
