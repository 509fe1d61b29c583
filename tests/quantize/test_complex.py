"""Complex numbers on the way: spectra and rotations convert like other functions; complex weights are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikezip.errors import StageError
from spikezip.measure import verify
from spikezip.pipeline import convert, load
from spikezip.run import Engine

IMAGES = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, last: int = 8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.last = nn.Linear(6, 8), nn.Linear(last, 4)
            self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.arange(4.0)))


class Magnitude(Between):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.fft(F.relu(self.first(x))).abs())


class Parts(Between):
    def __init__(self):
        super().__init__(last=5)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(F.relu(self.first(x)))
        return self.last(spectrum.real - 0.5 * spectrum.imag)


class Filtered(Between):
    """As a layer of a Fourier neural operator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.filter, n=8)))


class Turned(Between):
    """As rotary positions are written with complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(F.relu(self.first(x)).reshape(-1, 4, 2))
        return self.last(torch.view_as_real(pairs * self.turn).flatten(1))


class Shifted(Between):
    """Stored complex numbers that are added, and one of several that multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([torch.fft.rfft(F.relu(self.first(x))) + self.filter, self.several(x)], 1).abs())

    def __init__(self):
        super().__init__(last=9)
        self.filters = nn.Parameter(torch.stack([self.filter.detach().conj(), self.filter.detach()]))

    def several(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x) * self.filters[0, :4]


class Spectrum(Between):
    """Its output is complex."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.last(F.relu(self.first(x))))


class Mixed(Between):
    """Complex weights that add up: a synaptic operation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(torch.fft.rfft(F.relu(self.first(x))), self.filter.outer(self.filter)).abs()


@pytest.mark.parametrize("network", [Magnitude, Parts, Filtered, Turned, Shifted, Spectrum])
def test_complex_numbers_convert_and_every_engine_agrees(network, tmp_path):
    model = network().eval()
    snn = convert(model, IMAGES[:2], IMAGES, levels=16)
    floats = convert(model, IMAGES[:2], IMAGES, levels=16, weight_bits=None)
    for engine in Engine:
        assert verify(snn, IMAGES, engine=engine).equal
    with torch.no_grad():
        wanted = model(IMAGES)
    mine, near = snn.run(IMAGES).outputs[0][-1], floats.run(IMAGES).outputs[0][-1]
    assert mine.dtype == wanted.dtype
    # Integer weights add little to what quantizing the neurons costs.
    lost, lost_by_neurons = ((found - wanted).abs().mean() / wanted.abs().mean() for found in (mine, near))
    assert float(lost) < float(lost_by_neurons) + 0.02
    assert float(lost_by_neurons) < 0.2
    for which, network in enumerate((snn, floats)):
        again = load(network.save(tmp_path / f"{which}.spikezip"))
        assert torch.equal(again.run(IMAGES).outputs[0], network.run(IMAGES).outputs[0])


@pytest.mark.parametrize("how", ["linear", "right", "left"])
def test_complex_weights_that_multiply_real_codes_are_refused_by_name(how):
    """Their imaginary part was left out, and the certificate said equal. Floats keep it."""

    class Spun(Between):
        def __init__(self):
            super().__init__()
            self.spin = nn.Linear(8, 8, dtype=torch.complex64)

        def forward(self, x: Tensor) -> Tensor:
            codes = F.relu(self.first(x)).to(torch.complex64)
            if how == "linear":
                return self.last(self.spin(codes).abs())
            weight = self.spin.weight
            return self.last((codes @ weight if how == "right" else (weight @ codes[..., None])[..., 0]).abs())

    model = Spun().eval()
    with pytest.raises(StageError, match="has complex weights or a complex bias"):
        convert(model, IMAGES[:2], IMAGES)
    snn = convert(model, IMAGES[:2], IMAGES, levels=64, weight_bits=None)
    with torch.no_grad():
        wanted = model(IMAGES)
        assert float((snn.qann(IMAGES) - wanted).norm() / wanted.norm()) < 0.1


def test_complex_weights_are_refused_by_name():
    with pytest.raises(StageError, match=r"'fft_rfft'.*complex numbers that weights multiply"):
        convert(Mixed().eval(), IMAGES[:2], IMAGES)


def test_inputs_may_be_conjugates_not_yet_computed():
    class Analog(Between):
        def forward(self, z: Tensor) -> Tensor:
            return self.last(F.relu(self.first(torch.view_as_real(z).flatten(1))))

    z = torch.randn(16, 3, dtype=torch.complex64)
    lazy, whole = z.conj(), z.conj().resolve_conj()
    assert lazy.is_conj()
    snn, wanted = (convert(Analog(), x[:1], x) for x in (lazy, whole))
    assert torch.equal(snn.run(lazy).answer, wanted.run(whole).answer)
    assert verify(snn, lazy).equal
