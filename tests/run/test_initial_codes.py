"""Tracers that start at another code than 0: one run in every engine, and the QANN at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import spikezip
from random_networks import BLOCKS, Drawn, shuffle_statistics
from spikezip import Engine
from spikezip.bench.loops import StepLoop
from spikezip.errors import StageError
from spikezip.measure import ablate, count
from spikezip.spike import Encoding, Even, Pulse
from spikezip.spike.neurons import SpikeTracking


@pytest.mark.parametrize(("code", "encoding"), [(1, Pulse()), (5, Even(3)), ("mean", Pulse()), ("mean", Even(3))])
@pytest.mark.parametrize("blocks", [sorted(BLOCKS)[i::3] for i in range(3)], ids=" + ".join)
def test_every_engine_starts_there_and_ends_at_the_qann(blocks: list[str], code: int | str, encoding: Encoding):
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
    said = "codes of their own" if code == "mean" else str(code)
    assert certificate.conditions[0].evidence.endswith(f"start at {said}")


def test_spikes_say_how_far_tracers_went_from_there():
    images = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    model = shuffle_statistics(Drawn(["residual"])).eval()
    snn = spikezip.convert(model, images[:2], images, levels=6, initial_code=2)
    first, run = snn.layers[0], snn.run(images)
    codes = run.codes[first[0]].long()
    ups_less_downs = (run.spikes[first[0]] - 2 * run.negative[first[0]]).sum(0)
    assert torch.equal(ups_less_downs, (codes - 2).flatten(1).sum(1))
    assert spikezip.spike(snn.qann, initial_code=0).run(images).answer.equal(run.answer)


def test_from_mean_codes_there_is_less_to_send_and_the_end_is_the_same(tmp_path: Path):
    images = torch.rand(40, 2, 5, 5, generator=torch.Generator().manual_seed(2)) + 0.5
    model = shuffle_statistics(Drawn(["residual", "attention", "pooling"])).eval()
    plain = spikezip.convert(model, images[:2], images)
    snn = spikezip.convert(model, images[:2], images, initial_code="mean")
    streamed = spikezip.convert(model, images[:2], (part for part in images.split(16)), initial_code="mean")
    assert all(torch.equal(streamed.initial_code[k], v) for k, v in snn.initial_code.items())
    first, run = plain.run(images), snn.run(images)
    for name, neuron in snn.layers:
        assert neuron.initial_codes is not None
        assert float((first.codes[name].double().mean(0) - neuron.initial_codes).abs().max()) <= 0.5
    assert torch.equal(run.answer, first.answer)
    assert int(run.total_spikes.sum()) < 0.8 * int(first.total_spikes.sum())
    assert float(run.settled_at.double().mean()) < float(first.settled_at.double().mean())
    counts = count(snn, images[:8])
    assert torch.allclose(counts.spikes * 8, snn.run(images[:8]).total_spikes.sum(1).double())
    record = spikezip.measure(snn, images[:8], steps=12, distances=4).content
    assert record["initial_code"] == "codes of their own"
    first_layer, first_name = record["raster"]["layers"][0], snn.layers[0][0]
    shown = [s for t, i, s in first_layer["spikes"]]
    ids = first_layer["neurons"]
    one = snn.run(images[:1], 12)
    moved = one.codes[first_name].flatten()[ids].long() - snn.layers[0][1].initial_codes.flatten()[ids].long()
    assert sum(shown) == int(moved.sum()), "the raster begins where tracers do"
    snn.save(tmp_path / "mean.spikezip")
    loaded = spikezip.load(tmp_path / "mean.spikezip")
    assert torch.equal(loaded.run(images).total_spikes, run.total_spikes)


def test_codes_of_another_network_are_refused():
    images = torch.rand(3, 2, 5, 5)
    snn = spikezip.convert(Drawn(["chain"]).eval(), images, images, initial_code="mean")
    codes = dict(snn.initial_code)
    name = snn.layers[0][0]
    for wrong, told in (
        ({k: v for k, v in codes.items() if k != name}, "have none for layer"),
        ({**codes, name: codes[name][:1]}, "tracers of one sample"),
        ({**codes, name: codes[name] + 99}, "starts at one of its codes"),
        ({**codes, name: codes[name] * 0.5 + 0.1}, "starts at one of its codes"),
    ):
        with pytest.raises(StageError, match=told):
            spikezip.spike(snn.qann, initial_code=wrong)


def test_what_knows_no_initial_code_refuses_it():
    images = torch.rand(2, 2, 5, 5)
    snn = spikezip.convert(Drawn(["chain"]).eval(), images, images, initial_code=1)
    with pytest.raises(StageError, match="initial_code=0"):
        StepLoop(snn)
    with pytest.raises(StageError, match="initial_code=0"):
        ablate(snn, SpikeTracking(), images, 4)
