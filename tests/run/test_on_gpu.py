"""On a GPU: the same bits as on the CPU, whatever its libraries would rather multiply with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import spikezip
from random_networks import Drawn, networks, shuffle_statistics
from spikezip import Even, Pulse
from spikezip.measure import choose_threshold
from spikezip.models import resnet18, resolve
from spikezip.models.torchvision_ops import import_timm
from spikezip.run import Engine, Margin, Run, execute
from spikezip.train import AdamW, Plan, TensorBatches, Trajectory, train

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["ieee", "tf32"], autouse=True)
def allowed(request):
    """What a user's program may have allowed before."""
    places = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = request.param
    yield request.param
    for place, old in zip(places, before, strict=True):
        place.fp32_precision = old


def same(found: Run, wanted: Run) -> None:
    """Every spike, every tracer, every output."""
    steps = min(len(found.logits), len(wanted.logits))
    assert torch.equal(found.settled_at, wanted.settled_at)
    for ours, theirs in zip(found.outputs, wanted.outputs, strict=True):
        assert torch.equal(ours[:steps].cpu(), theirs[:steps])
        assert torch.equal(ours[-1].cpu(), theirs[-1])
    for layer, counts in wanted.spikes.items():
        assert torch.equal(found.spikes[layer][:steps].cpu(), counts[:steps]), layer
        assert torch.equal(found.codes[layer].cpu(), wanted.codes[layer]), layer


def runs_the_same(model: nn.Module, images: torch.Tensor, levels: int = 6, engines: tuple[Engine, ...] = tuple(Engine)):
    for encoding in (Pulse(), Even(3)):
        snn = spikezip.convert(model.eval(), images[:2], images, levels=levels, encoding=encoding)
        wanted = execute(snn, images, engine=Engine.REFERENCE)
        snn = snn.to("cuda")
        for engine in engines:
            found = execute(snn, images.cuda(), engine=engine)
            assert found.outputs[0].is_cuda
            same(found, wanted)
        certificate = spikezip.verify(snn, images.cuda())
        assert certificate.equal
        assert certificate.mismatches == 0


@settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=8)
@given(networks())
def test_random_networks(model):
    images = torch.randn(5, *Drawn.input_shape, generator=torch.Generator().manual_seed(0))
    runs_the_same(shuffle_statistics(model), images)


def test_a_wide_network_in_large_batches():
    """Widths and batches at which cuDNN would choose Winograd or FFT for float32."""
    torch.manual_seed(0)
    images = torch.randn(24, 3, 32, 32)
    runs_the_same(shuffle_statistics(resnet18()), images, 4, (Engine.SWEEP,))


def test_a_vision_transformer():
    torch.manual_seed(0)
    model = import_timm().create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10)
    runs_the_same(model, torch.randn(3, 3, 64, 64), 8, (Engine.REFERENCE, Engine.SWEEP))


def test_float_weights_settle_on_the_qann_of_the_same_device():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    snn = spikezip.convert(shuffle_statistics(resnet18()), images[:2], images, weight_bits=None)
    snn.graph.to("cuda")
    assert spikezip.verify(snn, images.cuda()).equal


def test_early_exit():
    torch.manual_seed(0)
    images = torch.randn(20, 1, 8, 8)
    source = resolve("spikezip:digits")
    snn = spikezip.convert(source.module, source.example, images)
    rule = Margin(0.2)
    wanted = execute(snn, images, engine=Engine.REFERENCE, early_exit=rule)
    snn.graph.to("cuda")
    found = execute(snn, images.cuda(), early_exit=rule)
    assert wanted.exited_at is not None
    assert found.exited_at is not None
    assert torch.equal(found.exited_at, wanted.exited_at)
    labels = wanted.answer.argmax(-1)
    assert choose_threshold(execute(snn, images.cuda(), 8), labels, Margin).accuracy == 1


def test_training_takes_place_there_and_its_network_comes_home():
    """A trajectory of the digits' network learns a rule; large enough that its trackers are compiled."""
    torch.manual_seed(0)
    source = resolve("spikezip:digits")
    images = torch.randn(2048, 1, 8, 8)
    labels = (images[:, 0, 2:6, 2:6].sum((1, 2)) > 0).long()
    qann = spikezip.quantize(spikezip.morph(spikezip.capture(source.module, source.example)), 3, images[:64])
    plan = Plan(objective=Trajectory((0, 1)), epochs=20, batch=448, optimizer=AdamW(rate=1e-2))
    done = train(qann, TensorBatches(images, labels, held_out=256), plan)
    assert not next(done.network.parameters()).is_cuda
    assert done.history[-1].validation["accuracy"] > 0.7
    trained = spikezip.to_integer(done.network, 8)  # type: ignore[arg-type]
    assert spikezip.verify(spikezip.spike(trained), images[:32]).equal


def test_a_model_that_is_there_is_quantized_there():
    torch.manual_seed(0)
    model, images = shuffle_statistics(resnet18()).cuda(), torch.randn(8, 3, 32, 32, device="cuda")
    qann = spikezip.quantize(spikezip.morph(spikezip.capture(model, images[:2])), 8, images)
    assert all(tensor.is_cuda for tensor in qann.state_dict().values())
    assert spikezip.verify(spikezip.spike(qann), images).equal
