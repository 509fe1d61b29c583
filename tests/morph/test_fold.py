"""Folding BatchNorm keeps the function to the last digits of float64, wherever the BatchNorm stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batch_norm_networks import NETWORKS, STANDING_ALONE, captured
from random_networks import shuffle_statistics
from spikezip.errors import CaptureError
from spikezip.graph import capture, network
from spikezip.morph import BatchNorm, Morph, morph
from spikezip.morph.fold import LiveBatchNorm


def _batch_norms(gm) -> int:
    return sum("batch_norm" in network.op_name(n) for n in gm.graph.nodes)


@pytest.mark.parametrize("name", [*NETWORKS, *STANDING_ALONE])
def test_outputs_are_kept(name):
    model, ann, x = captured(name)
    before = {k: v.clone() for k, v in ann.state_dict().items()}
    folded = morph(ann)
    assert _batch_norms(ann) > 0
    assert _batch_norms(folded) == 0
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in ann.state_dict().items())
    operations = [network.op_name(n) for n in folded.graph.nodes if n.op == "call_function"]
    assert ("mul" in operations) == (name in STANDING_ALONE)


@pytest.mark.parametrize("name", [*NETWORKS, *STANDING_ALONE])
def test_live_it_is_a_module_that_trains_and_folds_later(name):
    model, ann, x = captured(name)
    live = morph(ann, Morph(batch_norm=BatchNorm.LIVE))
    norms = {n: m for n, m in live.named_modules() if isinstance(m, LiveBatchNorm)}
    assert len(norms) == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert norms.keys() <= dict(model.named_modules()).keys(), "they keep their author's names"
    assert _batch_norms(live) == 0
    torch.testing.assert_close(live(x), model(x), rtol=1e-12, atol=1e-12)
    again = morph(live, Morph(batch_norm=BatchNorm.LIVE))
    assert {n for n, m in again.named_modules() if isinstance(m, LiveBatchNorm)} == norms.keys()
    torch.testing.assert_close(again(x), live(x), rtol=1e-12, atol=1e-12)
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    live.train()(x)
    assert all(not torch.equal(m.running_mean, before[n]) for n, m in norms.items()), "statistics follow the data"
    live.eval()
    folded = morph(live)
    assert not any(isinstance(m, LiveBatchNorm) for m in folded.modules())
    torch.testing.assert_close(folded(x), live(x), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_called_twice_becomes_two():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(F.relu(self.bn(x))))

    model, x = shuffle_statistics(Twice()).eval(), torch.randn(3, 2, 4, 4)
    live = morph(capture(model, x), Morph(batch_norm=BatchNorm.LIVE))
    assert {n for n, m in live.named_modules() if isinstance(m, LiveBatchNorm)} == {"bn", "bn_2"}
    torch.testing.assert_close(live(x), model(x))
    assert not any(n.startswith("bn") for n, p in live.named_parameters() if p.requires_grad), "no affine map to train"


def test_no_running_statistics_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(CaptureError, match=r"'1' .*mixes the samples of a batch.*BatchNorm in evaluation mode"):
        capture(model, torch.randn(2, 2, 3, 3))
