"""The benchmark of speed runs, its contenders agree to the bit (it compares them itself), and it can say no."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from spikezip import bench
from spikezip.bench import memory
from spikezip.errors import EquivalenceError, InputError
from spikezip.models import resolve

SHAPE = (1, 8, 8)


def build(width: float) -> torch.nn.Module:
    assert width == 1
    return resolve("spikezip:digits").module


def measured(**axes) -> dict:
    effort = bench.Effort(tuple(bench.installed()), rounds=1)
    return bench.benchmark("digits", build, SHAPE, bench.Axes(**axes), effort)


def test_benchmark_and_what_it_records():
    threads = torch.get_num_threads()
    told = []
    record = bench.benchmark(
        "digits",
        build,
        SHAPE,
        bench.Axes(steps=(2, 6), levels=(4,), batch=(2, 1)),
        bench.Effort(tuple(bench.installed()), rounds=2),
        on_setting=told.append,
    )
    assert torch.get_num_threads() == threads
    assert told == record["settings"]
    assert [(s["axis"], s["batch"]) for s in record["settings"]] == [("base", 2), ("batch", 1)]
    base, other = record["settings"]
    engines = bench.installed()
    assert [(r["steps"], r["engine"]) for r in base["rows"]] == [(t, e) for t in (2, 6) for e in engines]
    assert [(r["steps"], r["engine"]) for r in other["rows"]] == [(2, "sweep"), (6, "sweep")]
    for row in base["rows"]:
        assert 0 < row["least"] <= row["ann_forwards"] <= row["most"]
        assert row["rounds"] == (2 if row["engine"] == "sweep" else 1)
    assert record["versions"]["torch"] == torch.__version__
    # Facts of the network: it settles where its spikes end, on the QANN.
    assert base["mismatches"] == 0
    assert len(base["spikes_per_step"]) == base["settled_at"][1]
    assert base["spikes_per_step"][0] > 0


def test_contenders_that_disagree_are_found(monkeypatch):
    plain = bench.CONTENDERS["plain loop"]
    wrong = dataclasses.replace(plain, run=lambda c, steps: plain.run(c, steps) + 1)
    monkeypatch.setitem(bench.CONTENDERS, "plain loop", wrong)
    with pytest.raises(EquivalenceError, match="plain loop and sweep do not agree at 2 steps"):
        measured(steps=(2,), levels=(4,), batch=(2,))


def test_floats_are_timed_without_comparing_bits():
    effort = bench.Effort(("sweep", "plain loop"), rounds=1)
    record = bench.benchmark(
        "digits", build, SHAPE, bench.Axes(steps=(3,), levels=(4,), batch=(2,)), effort, weight_bits=None
    )
    assert record["weight_bits"] is None
    assert len(record["settings"][0]["rows"]) == 2


def test_folding_all_steps_into_the_batch_gives_the_same_outputs():
    """The loop that SpikingJelly's multi-step neurons run in, tried with neurons of our own."""
    from spikezip.bench.loops import LayerLoop, PlainNeurons, StepLoop

    case = bench.make_case(build(1), SHAPE, 4, batch=2)

    def all_steps(neuron):
        layer = PlainNeurons(neuron)
        return lambda currents: torch.stack([layer(current) for current in currents])

    wanted = StepLoop(case.snn).outputs(case.images, 6)
    assert torch.equal(LayerLoop(case.snn, all_steps).outputs(case.images, 6), wanted)
    with pytest.raises(TypeError, match="'make'"):  # PlainNeurons know one step at a time
        LayerLoop(case.snn)  # type: ignore[call-arg]
    assert not torch.equal(wanted[-1], wanted[0])


def test_unknown_and_missing_contenders(monkeypatch):
    with pytest.raises(InputError, match=r"no contender 'fast'\. There are: sweep, torch alone, no compiler"):
        bench.benchmark("n", build, SHAPE, effort=bench.Effort(("fast",)))
    gone = dataclasses.replace(bench.CONTENDERS["plain loop"], package="no_such_package")
    monkeypatch.setitem(bench.CONTENDERS, "plain loop", gone)
    assert "plain loop" not in bench.installed()
    with pytest.raises(InputError, match=r"needs the package no_such_package: pip install"):
        bench.benchmark("n", build, SHAPE, effort=bench.Effort(("plain loop",)))


def test_everybody_gets_the_layout_that_the_unit_has():
    case = bench.make_case(build(1), SHAPE, 4, batch=2)
    weights = [p for graph in (case.ann, case.snn.graph) for p in graph.parameters() if p.dim() == 4]
    assert len(weights) > 2
    for tensor in (case.images, *weights):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_volumes_have_no_layout_of_images():
    nn = torch.nn
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    case = bench.make_case(model, (1, 4, 4, 4), 4, batch=2, active=None)
    assert case.images.is_contiguous()


def test_axes_vary_one_thing_at_a_time():
    axes = bench.Axes(levels=(8, 16), batch=(32, 1), width=(1.0, 0.5), active=(0.5, 0.25))
    base = {"levels": 8, "batch": 32, "width": 1.0, "active": 0.5}
    assert list(axes.settings()) == [
        ("base", base),
        ("levels", base | {"levels": 16}),
        ("batch", base | {"batch": 1}),
        ("width", base | {"width": 0.5}),
        ("active", base | {"active": 0.25}),
    ]


def test_active_units_follow_what_is_asked_for():
    shares = []
    for active in (0.5, 0.1):
        facts = bench.make_case(build(1), SHAPE, 4, batch=2, active=active).facts()
        shares.append(facts["active_units"])
    assert shares[1] < 0.5 * shares[0]


def test_peak_memory_sees_what_a_call_takes():
    result, peak = memory.peak_mib(lambda: torch.ones(64 * 2**18).sum())  # 64 MiB
    assert result == 64 * 2**18
    if peak is None:
        pytest.skip("this system does not tell how much memory a process took")
    assert 60 < peak < 100
    assert memory.peak_mib(lambda: None)[1] < 4
