"""Modes of torch that a caller may be in: the road is the same within, and what comes of it can be trained."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

import spikezip
from spikezip.graph.weights_hash import weights_sha256
from spikezip.train import TensorBatches, fit_first_steps


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


def test_what_was_made_in_inference_mode_can_be_trained():
    images, labels = torch.rand(32, 6), torch.arange(32) % 3
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.inference_mode():
        qann = spikezip.quantize(spikezip.morph(spikezip.capture(model, images[:1])), 8, images)
    tuned = spikezip.finetune(qann, TensorBatches(images, labels), spikezip.Plan(spikezip.QAT(), epochs=1, batch=8))
    assert weights_sha256(tuned) != weights_sha256(qann)
