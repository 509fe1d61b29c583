"""Folding BatchNorm keeps the function to the last digits of float64, wherever the BatchNorm stands."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks import shuffle_statistics
from spikezip.errors import CaptureError
from spikezip.graph import capture, network
from spikezip.morph import BatchNorm, Morph, morph
from spikezip.morph.fold import LiveBatchNorm


class TwoReaders(nn.Module):
    """The convolution's result is read beside its BatchNorm: it must not be folded into."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class SharedConvolution(nn.Module):
    """One convolution under two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


class Functional(nn.Module):
    """A matrix product by ``function``, under a BatchNorm."""

    def __init__(self, function):
        super().__init__()
        self.lin, self.bn, self.function = nn.Linear(4, 4), nn.BatchNorm1d(4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.function(x, self.lin.weight, self.lin.bias))


NETWORKS = {
    "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)), (4, 7)),
    "conv2d": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False, padding="same"), nn.BatchNorm2d(6)), (4, 5, 5)),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 3, 2, dilation=2), nn.BatchNorm3d(3)), (2, 4, 4, 4)),
    "depthwise": (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), (4, 5, 5)),
    "transposed 1d": (nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 5)),
    "transposed, groups": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)), (4, 4, 4)),
    "transposed 3d": (nn.Sequential(nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3)), (2, 3, 3, 3)),
    "linear": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), (4,)),
    "linear without bias": (nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)), (4,)),
    "no affine map": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), (2, 5, 5)),
    "two in a row": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=0.1)), (2, 5, 5)),
    "mm": (Functional(lambda x, w, b: torch.mm(x, w)), (4,)),
    "addmm": (Functional(lambda x, w, b: torch.addmm(b, x, w)), (4,)),
    "shared convolution": (SharedConvolution(), (2, 4, 4)),
}
NETWORKS["computed bias"] = (Functional(lambda x, w, b: F.linear(x, w, 2 * b)), (4,))
STANDING_ALONE = {
    "first": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)), (2, 5, 5)),
    "behind ReLU": (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3)), (4,)),
    "two readers": (TwoReaders(), (2, 5, 5)),
    "over positions": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5)), (5, 4)),
    "over as many positions as channels": (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), (5, 4)),
    "addmm with factors": (Functional(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0)), (4,)),
    "addmm of a signal": (Functional(lambda x, w, b: torch.addmm(x, x, w)), (4,)),
}


def _batch_norms(gm) -> int:
    return sum("batch_norm" in network.op_name(n) for n in gm.graph.nodes)


@pytest.mark.parametrize("name", [*NETWORKS, *STANDING_ALONE])
def test_outputs_are_kept(name):
    model, shape = {**NETWORKS, **STANDING_ALONE}[name]
    model = shuffle_statistics(copy.deepcopy(model)).double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ann = capture(model, x)
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
    model, shape = {**NETWORKS, **STANDING_ALONE}[name]
    model = shuffle_statistics(copy.deepcopy(model)).double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ann = capture(model, x)
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
