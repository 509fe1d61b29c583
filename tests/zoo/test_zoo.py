"""Every operation and every model of the zoo goes the whole road, and every claim on the way holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_models import ZOO, ZooModel
from zoo_ops import OPS, Op
from zoo_road import Journey, travel
from zoo_transformers import INSTALLED, REFUSED, TRANSFORMERS

from spikezip.errors import CaptureError
from spikezip.graph import capture, network
from spikezip.morph import Morph, Residual, morph
from spikezip.quantize import quantize, to_integer
from spikezip.run import Engine, execute
from spikezip.spike import SpikingNetwork, spike

#: Operations that `make test` runs too: one of each family.
FAST_OPS = {
    "grouped convolution", "transposed grouped convolution", "linear on tokens", "max pooling, ceil and dilation",
    "average pooling, border not counted", "adaptive average pooling, uneven windows", "PReLU behind a convolution",
    "GELU behind a convolution", "BatchNorm behind spikes", "LayerNorm", "squeeze-excitation", "layer scale",
    "concatenation", "pad with a number", "scaled dot-product attention", "a convolution called twice",
    "max pooling 3d", "recurrence, unrolled", "nn.MultiheadAttention from a stored query",
}  # fmt: skip


def _params(rows: tuple, fast) -> list:
    return [pytest.param(r, id=r.name, marks=() if fast(r) else pytest.mark.zoo) for r in rows]


def _holds(journey: Journey) -> None:
    assert journey.capture_error <= 1e-9
    assert journey.morph_error <= 1e-9
    assert (journey.float_mismatches, journey.integer_mismatches) == (0, 0)
    assert journey.engines_equal, "sweep and reference differ"
    assert journey.outputs_equal
    assert journey.rounding < 0.02, "the integer network is another function"
    assert 0 < journey.t_eq <= journey.bound
    assert journey.inexact == []
    assert journey.sound


def test_fast_operations_are_in_the_table():
    assert {op.name for op in OPS} >= FAST_OPS


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own word on what is tested here
@pytest.mark.parametrize("op", _params(OPS, lambda op: op.name in FAST_OPS))
def test_operation(op: Op):
    journey = travel(op.network(), op.images)
    _holds(journey)
    assert journey.silent_layers == 0, "a layer that never fires proves nothing"


@pytest.mark.parametrize("model", _params(ZOO, lambda model: model.fast))
def test_model(model: ZooModel):
    _holds(travel(model.network(), model.example()))


@pytest.mark.zoo
@pytest.mark.skipif(not INSTALLED, reason="transformers is not installed: pip install 'spikezip[zoo]'")
@pytest.mark.filterwarnings("ignore")  # of a library that is not ours
@pytest.mark.parametrize("model", [pytest.param(m, id=m.name) for m in TRANSFORMERS])
def test_model_of_transformers(model: ZooModel):
    if model.name in REFUSED:
        with pytest.raises(CaptureError, match=REFUSED[model.name]):
            travel(model.network(), model.example())
    else:
        _holds(travel(model.network(), model.example()))


# -- several inputs and outputs ---------------------------------------------------------------------------------------


class Several(nn.Module):
    """Images and numbers in; scores, and a pair beside them, out."""

    def __init__(self):
        super().__init__()
        self.image, self.number = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)
        self.scores, self.side = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        mixed = F.relu(self.image(x)).mean((2, 3)) * F.relu(self.number(y))
        return {"scores": self.scores(mixed), "pair": (self.side(mixed), mixed)}


def test_several_inputs_and_outputs():
    generator = torch.Generator().manual_seed(0)
    _holds(travel(Several(), (torch.randn(2, 3, 6, 6, generator=generator), torch.randn(2, 5, generator=generator))))


class Words(nn.Module):
    """Whole numbers in."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.table(x))).mean(1))


def test_an_input_of_whole_numbers():
    _holds(travel(Words(), torch.randint(0, 10, (2, 6), generator=torch.Generator().manual_seed(0))))


# -- the same to the bit, however it is run ---------------------------------------------------------------------------

_NETS = ["torchvision:resnet", "torchvision:mobilenet_v3", "torchvision:vit"]


def _integer(name: str, images: Tensor, choice: Morph = Morph()) -> SpikingNetwork:
    model = next(m for m in ZOO if m.name == name).network()
    return spike(to_integer(quantize(morph(capture(model, images), choice), 8, images)))


def _everything(snn: SpikingNetwork, images: Tensor, batch: int, engine: Engine = Engine.SWEEP) -> list[Tensor]:
    run = execute(snn, images, 24, engine=engine, batch=batch)
    return [*run.outputs, run.settled_at, *run.spikes.values(), *(c.flatten(1).float() for c in run.codes.values())]


@pytest.mark.zoo
@pytest.mark.parametrize("name", _NETS)
def test_batches_threads_and_layouts_do_not_matter(name: str):
    """Batches of 1 and of 64, 1 and 2 threads, NCHW and NHWC: the same outputs, spikes and codes to the bit."""
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    snn = _integer(name, images[:16])
    whole = _everything(snn, images, 64)
    few = images[:5]
    timed = len(snn.layers) + len(network.outputs(snn.graph)) + 1  # by step first; then come codes
    wanted = [t[:, :5] if i < timed and t.dim() > 1 else t[:5] for i, t in enumerate(whole)]
    for changed in (few, few.to(memory_format=torch.channels_last)):
        for batch in (1, 5):
            found = _everything(snn, changed, batch)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), (batch, changed.stride())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert all(torch.equal(a, b) for a, b in zip(_everything(snn, few, 5), wanted, strict=True))
    finally:
        torch.set_num_threads(threads)
    qann = snn.qann
    together = qann(images)
    for changed in (few, few.to(memory_format=torch.channels_last)):
        assert torch.equal(qann(changed), together[:5])
        assert torch.equal(torch.cat([qann(x[None]) for x in changed]), together[:5])


@pytest.mark.zoo
def test_re_routed_networks_convert():
    model = next(m for m in ZOO if m.name == "torchvision:resnet")
    _holds(travel(model.network(), model.example(), choice=Morph(residual=Residual.RCR)))
