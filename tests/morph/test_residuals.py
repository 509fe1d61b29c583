"""The wirings of residual blocks: what each computes, and that the SNN equals the QANN in all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import spikezip
from random_networks import shuffle_statistics
from spikezip.graph import capture, network
from spikezip.models import PaddedShortcut
from spikezip.models.cifar_resnet import resnet20
from spikezip.morph import Morph, Residual, morph
from spikezip.morph.residual import _depth_above_fork
from spikezip.quantize import quantize
from spikezip.quantize.quantizer import Quantizer

REWIRED = [Residual.SEW_ADD, Residual.IAND, Residual.MS]
SHORTCUTS = {
    "identity": (nn.Identity, 1),
    "option A": (lambda: PaddedShortcut(2), 2),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6)), 2),
}


class Blocks(nn.Module):
    """A stem and two basic blocks; the second has the shortcut asked for. ``wired`` is what each wiring should give."""

    def __init__(self, shortcut: str = "identity"):
        super().__init__()
        make, stride = SHORTCUTS[shortcut]
        wide = 4 if stride == 1 else 6
        self.stem = nn.Conv2d(2, 4, 1)
        self.a1, self.a2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(4, wide, 3, stride, 1), nn.Conv2d(wide, wide, 3, padding=1)
        self.shortcut, self.synaptic = make(), shortcut == "convolution"
        self.head = nn.Linear(wide, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.a2(F.relu(self.a1(x))) + x)
        x = F.relu(self.b2(F.relu(self.b1(x))) + self.shortcut(x))
        return self.head(x.mean((2, 3)))

    def wired(self, x: Tensor, wiring: Residual) -> Tensor:
        current = self.stem(x)  # what the identity hands on in MS, before the ReLU
        spikes = F.relu(current)
        for first, second, shortcut in ((self.a1, self.a2, nn.Identity()), (self.b1, self.b2, self.shortcut)):
            main = second(F.relu(first(spikes)))
            through = self.synaptic and shortcut is self.shortcut
            if wiring is Residual.MS:
                current = main + shortcut(spikes if through else current)
                spikes = F.relu(current)
                continue
            short = F.relu(shortcut(spikes)) if through else shortcut(spikes)
            spikes = F.relu(main) + short if wiring is Residual.SEW_ADD else F.relu(short - F.relu(main))
        return self.head(spikes.mean((2, 3)))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("wiring", REWIRED, ids=lambda w: w.value)
def test_each_wiring_computes_what_it_says(wiring, shortcut):
    model = shuffle_statistics(Blocks(shortcut)).double().eval()
    images = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    ann = capture(model, images)
    rewired = morph(ann, Morph(residual=wiring))
    expected = model.wired(images, wiring)
    torch.testing.assert_close(rewired(images), expected, rtol=1e-11, atol=1e-11)
    assert (expected - model(images)).abs().max() > 1e-3, "it would not tell the wirings apart"
    torch.testing.assert_close(ann(images), model(images), rtol=1e-11, atol=1e-11)
    twice = morph(rewired, Morph(residual=wiring))
    assert torch.equal(twice(images), rewired(images))
    assert len(list(twice.graph.nodes)) == len(list(rewired.graph.nodes))


@pytest.mark.parametrize("bits", [8, None], ids=["integers", "floats"])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("wiring", Residual, ids=lambda w: w.value)
def test_the_snn_equals_the_qann_in_every_wiring(wiring, shortcut, bits):
    torch.manual_seed(1)
    model = shuffle_statistics(Blocks(shortcut)).eval()
    images = torch.randn(12, 2, 6, 6)
    snn = spikezip.convert(model, images[:1], images, morph=Morph(residual=wiring), weight_bits=bits)
    proof = spikezip.verify(snn, images).require()
    assert proof.equal
    assert sum(layer.codes_checked for layer in proof.layers) > 1000
    assert max(proof.settled_at) > 1, "something must happen over time"


@pytest.mark.filterwarnings("ignore:Weights of 8 bits change")  # a random network, gates instead of sums
@pytest.mark.parametrize("wiring", REWIRED, ids=lambda w: w.value)
def test_resnet20_too(wiring):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    snn = spikezip.convert(resnet20().eval(), images[:1], images, morph=Morph(residual=wiring))
    assert spikezip.verify(snn, images).require().equal
    assert len(snn.note("morphed")) == 2
    assert max(snn.note("morphed").values()) == 19  # BatchNorm; and
    assert min(snn.note("morphed").values()) == 9  # every block is rewired


def test_iand_is_and_not_on_binary_codes():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.copy, self.main = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.copy.weight.data.copy_(torch.eye(2))
            self.main.weight.data.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))  # both read the second

        def forward(self, x: Tensor) -> Tensor:
            s = torch.relu(self.copy(x))
            return torch.relu(self.main(s) + s) * 1.0

    qann = quantize(morph(capture(Gate(), torch.rand(2, 2)), Morph(residual=Residual.IAND)), 2)
    for _, quantizer in network.modules_of(qann, Quantizer):
        quantizer.scale.data.fill_(1.0)
        quantizer.calibrated.fill_(True)
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    s, a = inputs.bool(), inputs[:, 1:].bool().expand(-1, 2)
    expected = (s & ~a).float()
    assert torch.equal(qann(inputs), expected)
    assert torch.equal(spikezip.spike(qann).run(inputs, 8).logits[-1], expected)


def test_sew_add_and_rcr_differ_only_where_a_shortcut_has_synapses():
    torch.manual_seed(0)  # some weights leave a shortcut silent
    images = torch.randn(4, 2, 6, 6)
    for shortcut in SHORTCUTS:
        model = shuffle_statistics(Blocks(shortcut)).eval()
        sums = [morph(capture(model, images), Morph(residual=w))(images) for w in (Residual.RCR, Residual.SEW_ADD)]
        assert torch.equal(*sums) is (shortcut != "convolution")


def test_ms_leaves_a_shortcut_through_a_max_pool_alone():
    class Stemmed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.stem(x)), 2)
            return F.relu(self.conv(x) + x)

    model, images = Stemmed(), torch.randn(2, 2, 6, 6)
    ann = capture(model, images)
    with pytest.warns(UserWarning, match="residual=ms changed nothing") as told:
        kept = morph(ann, Morph(residual=Residual.MS))
    assert told[0].filename == __file__
    assert torch.equal(kept(images), ann(images))
    assert "membrane shortcuts (MS)" not in network.note(kept, "morphed", {})
    assert network.note(kept, "residual") == "vanilla"


def test_a_branch_may_be_deeper_than_pythons_stack():
    graph = fx.Graph()
    fork = node = graph.placeholder("x")
    for _ in range(600):
        node = graph.call_function(torch.ops.aten.mm.default, (node, node))
    assert (_depth_above_fork(node, fork), _depth_above_fork(fork, node)) == (600, 0)
