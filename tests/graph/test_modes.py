"""Modes of torch that a caller may be in: the road is the same within, and what comes of it can be trained."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import spikezip
from spikezip.graph.weights_hash import weights_sha256
from spikezip.measure import ablate, choose_threshold, compare, conditions, count, exit_curve, exit_run, price
from spikezip.run import Margin
from spikezip.run.drift import drift
from spikezip.spike.neurons import IntegrateAndFire
from spikezip.train import (
    PET,
    QAT,
    SGD,
    SPEQ,
    Capped,
    DatasetBatches,
    Objective,
    Plan,
    TensorBatches,
    Trajectory,
    fit_first_steps,
    train,
)


@pytest.mark.parametrize("within", [torch.inference_mode(), torch.device("meta")], ids=["inference mode", "device"])
def test_the_road_is_the_same(within: AbstractContextManager[None]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    images = torch.rand(32, 3, 6, 6)

    def road() -> tuple[list[str], list[spikezip.SNN]]:
        ann = spikezip.capture(model, images[:1])
        qann = spikezip.quantize(spikezip.morph(ann), 8, images, original=ann)
        snn = spikezip.spike(spikezip.to_integer(qann, calibration=images), initial_code=0)
        early = spikezip.quantize(spikezip.morph(ann), 8)
        fit_first_steps(early, ann, images, (0, 1))
        whole = [spikezip.convert(model, images[:1], images, initial_code=code) for code in (0, "mean")]
        return [weights_sha256(network) for network in (ann, qann, snn.graph, early)], [snn, *whole]

    hashes, snns = road()
    with within:
        same, within_it = road()
    assert same == hashes
    for one, other in zip(snns, within_it, strict=True):
        assert torch.equal(one.run(images).answer, other.run(images).answer)


@pytest.mark.parametrize("within", [torch.inference_mode(), torch.device("meta")], ids=["inference mode", "device"])
def test_what_is_told_of_a_network_is_the_same(within: AbstractContextManager[None], tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    images, labels = torch.rand(16, 1, 4, 4), torch.arange(16) % 3
    spikezip.convert(model, images[:1], images).save(tmp_path / "snn.spikezip")
    prices = spikezip.EnergyModel.named("horowitz-45nm-int8")

    def told() -> list[Any]:
        snn = spikezip.load(tmp_path / "snn.spikezip")
        counts, seen = count(snn, images), exit_run(snn, images, 6)
        return [
            spikezip.measure(snn, images, labels, early_exit=(Margin(0.5),))["accuracy"],
            str(spikezip.audit(snn)),
            str(spikezip.audit(snn, images)),
            str(conditions(snn)),
            price(counts, prices).snn.tolist(),
            counts.snn("ac").tolist(),
            ablate(snn, IntegrateAndFire(), images, 6).synops.tolist(),
            str(compare(snn, snn, images)),
            drift(snn, images, 6).none,
            exit_curve(seen, labels, Margin),
            choose_threshold(seen, labels, Margin),
        ]

    wanted = told()
    with within:
        found, kept = told(), spikezip.load(tmp_path / "snn.spikezip")
    assert found == wanted
    assert str(spikezip.audit(kept, images)) == wanted[2]


@pytest.mark.parametrize("objective", [QAT(), PET((Capped(2),)), SPEQ(), Trajectory((0, 1), learn_bias_shares=True)])
def test_training_is_the_same_whatever_the_default_device_is(objective: Objective):
    torch.manual_seed(0)
    images, labels = torch.rand(48, 6), torch.arange(48) % 3
    ann = spikezip.capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), images[:1])
    qann = spikezip.quantize(spikezip.morph(ann), 4, images)
    plan = Plan(objective, epochs=1, batch=16, optimizer=SGD(rate=0.05))
    for data in (TensorBatches(images, labels, held_out=16), DatasetBatches(Moved(images, labels))):
        trained = train(qann, data, plan).network
        with torch.device("meta"):
            same = train(qann, data, plan).network
        assert weights_sha256(same) == weights_sha256(trained) != weights_sha256(qann)


class Moved(Dataset):
    """Images that a transform moves, by what it draws."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index] + 0.1 * torch.randn(6), int(self.labels[index])


def test_what_was_made_in_inference_mode_can_be_trained():
    images, labels = torch.rand(32, 6), torch.arange(32) % 3
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.inference_mode():
        qann = spikezip.quantize(spikezip.morph(spikezip.capture(model, images[:1])), 8, images)
    tuned = spikezip.finetune(qann, TensorBatches(images, labels), spikezip.Plan(spikezip.QAT(), epochs=1, batch=8))
    assert weights_sha256(tuned) != weights_sha256(qann)
