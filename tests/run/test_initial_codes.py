"""Tracers that start at another code than 0: one run in every engine, and the QANN at its end."""

from __future__ import annotations

import pytest
import torch

import spikezip
from random_networks import BLOCKS, Drawn, shuffle_statistics
from spikezip import Engine
from spikezip.bench.loops import StepLoop
from spikezip.errors import StageError
from spikezip.measure.ablation import ablate
from spikezip.spike import Encoding, Even, Pulse
from spikezip.spike.neurons import SpikeTracking


@pytest.mark.parametrize("encoding", [Pulse(), Even(3)], ids=str)
@pytest.mark.parametrize("code", [1, 3, 9])
@pytest.mark.parametrize("blocks", [sorted(BLOCKS)[i::3] for i in range(3)], ids=" + ".join)
def test_every_engine_starts_there_and_ends_at_the_qann(blocks: list[str], code: int, encoding: Encoding):
    images = torch.rand(5, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    model = shuffle_statistics(Drawn(blocks, outputs=2)).eval()
    snn = spikezip.convert(model, images[:2], images, levels=6, initial_code=code, encoding=encoding)
    runs = [snn.run(images, engine=engine) for engine in (Engine.REFERENCE, Engine.SWEEP, Engine.EVENT)]
    for run in runs[1:]:
        for name, spikes in runs[0].spikes.items():
            assert torch.equal(run.spikes[name], spikes)
            assert torch.equal(run.negative[name], runs[0].negative[name])
        assert torch.equal(run.settled_at, runs[0].settled_at)
        for mine, theirs in zip(run.outputs, runs[0].outputs, strict=True):
            assert torch.equal(mine, theirs)
    for output, wanted in zip(runs[0].outputs, snn.qann(images), strict=True):
        assert torch.equal(output[-1], wanted)
    certificate = snn.verify(images).require()
    assert certificate.conditions[0].evidence.endswith(f"start at {min(code, 5)}")


def test_spikes_say_how_far_tracers_went_from_there():
    images = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    model = shuffle_statistics(Drawn(["residual"])).eval()
    snn = spikezip.convert(model, images[:2], images, levels=6, initial_code=2)
    first, run = snn.layers[0], snn.run(images)
    codes = run.codes[first[0]].long()
    ups_less_downs = (run.spikes[first[0]] - 2 * run.negative[first[0]]).sum(0)
    assert torch.equal(ups_less_downs, (codes - 2).flatten(1).sum(1))
    assert spikezip.spike(snn.qann, initial_code=0).run(images).answer.equal(run.answer)


def test_what_knows_no_initial_code_refuses_it():
    images = torch.rand(2, 2, 5, 5)
    snn = spikezip.convert(Drawn(["chain"]).eval(), images, images, initial_code=1)
    with pytest.raises(StageError, match="initial_code=0"):
        StepLoop(snn)
    with pytest.raises(StageError, match="initial_code=0"):
        ablate(snn, SpikeTracking(), images, 4)
