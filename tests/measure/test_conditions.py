"""The theorem's conditions: a certificate finds each one broken that no earlier stage would have refused."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from spikezip.errors import CaptureError, EquivalenceError, OutputError, StageError
from spikezip.graph import capture, network, purity
from spikezip.levels import Levels
from spikezip.measure import Record
from spikezip.measure.conditions import conditions
from spikezip.morph import morph
from spikezip.pipeline import SNN, convert, spike, verify
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.run import Engine, execute
from spikezip.spike import STBIF, Constant, Even, Pulse, Shares, SpikingNetwork
from spikezip.spike.swap import check_qann


@pytest.fixture(scope="module")
def snn() -> SNN:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(32, 4)
    return convert(model, x[:1], x)


def broken(snn: SpikingNetwork) -> set[str]:
    return {c.id for c in conditions(snn) if not c.holds}


def forked(snn: SpikingNetwork) -> SpikingNetwork:
    return replace(snn, graph=network.fork(snn.graph))


def test_all_hold_in_a_network_that_came_by_the_road(snn):
    assert [c.id for c in conditions(snn)] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert broken(snn) == set()
    assert all(c.evidence for c in conditions(snn))
    assert verify(snn, torch.randn(5, 4)).conditions == conditions(snn)


def test_c1_codes_without_zero_and_thresholds_that_are_not_positive(snn):
    with pytest.raises(StageError, match=r"1\.\.3 are not admissible: a neuron starts at 0"):
        Levels(1, 3)
    qann = network.fork(snn.qann)
    _, quantizer = next(network.modules_of(qann, Quantizer))
    quantizer.scale.data.fill_(0.0)
    with pytest.raises(StageError, match="a threshold must be positive and finite"):
        check_qann(qann)


@pytest.mark.parametrize("scale", [-0.1, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("verb", [to_integer, spike])
def test_a_scale_that_is_no_threshold_is_named(verb, scale):
    x = torch.randn(8, 4)
    qann = quantize(morph(capture(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), x)), 8, x)
    name, quantizer = next((str(n.target), q) for n, q in network.modules_of(qann, Quantizer))
    quantizer.scale.data.fill_(scale)
    with pytest.raises(StageError, match=rf"The scale of '{name}' is .*; a threshold must be positive and finite"):
        verb(qann)


def test_c3_tells_of_the_run_that_was_made(snn):
    lasting = replace(snn, encoding=Constant(), bias_encoding=Constant())
    (evidence,) = (c.evidence for c in verify(lasting, torch.randn(2, 4), steps=3).conditions if c.id == "C3")
    assert evidence.endswith("complete from step 3 on, of 3")


def test_c2_what_draws_at_random(snn):
    noisy = forked(snn)
    source = next(n for n in noisy.graph.graph.nodes if network.op_name(n) == "linear")
    with noisy.graph.graph.inserting_after(source):
        drawn = noisy.graph.graph.call_function(torch.ops.aten.rand_like.default, (source,))
    drawn.meta = dict(source.meta)
    noisy.graph.recompile()
    with pytest.raises(CaptureError, match=r"'0' \(rand_like\) draws random numbers"):
        purity.refuse_impure(noisy.graph)
    assert broken(noisy) == {"C2"}
    assert "rand_like" in next(c.evidence for c in conditions(noisy) if c.id == "C2")


def test_c2_an_index_that_was_computed_from_sizes_is_no_mask():
    """It is stored when the network is morphed."""

    class Turned(nn.Module):
        def forward(self, x):
            return torch.relu(x)[:, torch.arange(x.shape[1]).flip(0)] * 2

    x = torch.randn(32, 4)
    assert broken(convert(Turned(), x[:1], x)) == set()


@dataclass(frozen=True)
class Never:
    """An encoding that keeps a quarter of the input back."""

    def share(self, t: int, steps: int) -> float:
        return min(t / 4, 0.75)

    def t_off(self, steps: int) -> int:
        return 3


def test_c3_an_input_that_never_arrives_whole(snn):
    assert broken(replace(snn, encoding=Never())) == {"C3"}
    assert broken(replace(snn, bias_encoding=Never())) == {"C3"}
    for encoding in (Pulse(), Even(3), Shares((1, 3, 4))):
        assert broken(replace(snn, encoding=encoding)) == set()
    with pytest.raises(StageError, match="none above the last"):
        Shares((5, 4))


@dataclass(frozen=True)
class Leaves:
    """An encoding that is complete and takes the input away again."""

    name: ClassVar[str] = "leaves"
    last: int

    def share(self, t: int, steps: int) -> float:
        return 1.0 if t <= self.last else 0.0

    def t_off(self, steps: int) -> int:
        return 1


@dataclass(frozen=True)
class Early(Pulse):
    """An encoding that is complete before it says so."""

    def t_off(self, steps: int) -> int:
        return 3


def test_c3_an_input_that_leaves_again(snn):
    assert snn.bound + 2 == 8
    leaving = spike(snn.qann, Leaves(7), bias_encoding=Pulse())
    found = verify(leaving, torch.randn(5, 4))
    assert found.equal
    with pytest.raises(EquivalenceError, match="but C3 does not hold"):
        found.require()
    late = spike(snn.qann, Leaves(20))  # later than any run goes, unless it is asked to
    assert broken(late) == set()
    assert [c.id for c in conditions(late, steps=21) if not c.holds] == ["C3"]
    assert broken(spike(snn.qann, Pulse(), bias_encoding=Early())) == {"C3"}
    assert broken(spike(snn.qann, Shares((4, 1, 4)))) == broken(spike(snn.qann, Constant())) == set()


def test_c4_a_graph_that_runs_in_a_circle(snn):
    circle = forked(snn)
    first, second = [n for n in circle.graph.graph.nodes if network.op_name(n) == "linear"]
    first.replace_input_with(first.args[0], second)
    with pytest.raises(RuntimeError, match="was used before it has been defined"):
        conditions(circle)


def test_c5_a_tracer_with_other_limits_than_its_quantizer(snn):
    other = forked(snn)
    _, neuron = next(network.modules_of(other.graph, STBIF))
    assert neuron.levels == Levels(0, 7)
    neuron.levels = Levels(0, 6)
    qann = snn.qann

    class Beside(SpikingNetwork):
        @property
        def qann(self):
            return qann

    assert broken(Beside(other.graph, other.encoding, other.bias_encoding)) == {"C5"}


class Leaky(STBIF):
    """Forgets part of what it has received."""

    def forward(self, drive: torch.Tensor, tracer: torch.Tensor) -> torch.Tensor:
        return super().forward(0.7 * drive, tracer)


def test_c5_a_neuron_that_is_no_st_bif(snn):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)) * 3
    leaky = forked(snn)
    ((node, neuron),) = network.modules_of(leaky.graph, STBIF)
    leaky.graph.set_submodule(str(node.target), Leaky(neuron.levels, neuron.threshold))
    with pytest.raises(StageError, match=r"are Leaky, which may differ from ST-BIF.* reference engine"):
        verify(leaky, x, engine=Engine.SWEEP)
    for engine in (None, Engine.EVENT):
        proof = verify(leaky, x, engine=engine)
        assert not proof.equal
        assert [(c.id, c.evidence) for c in proof.conditions if not c.holds] == [
            ("C5", f"not ST-BIF as it is: {node.target} is of Leaky")
        ]
    runs = [execute(leaky, x, 8, engine=engine) for engine in (Engine.REFERENCE, Engine.EVENT)]
    assert torch.equal(runs[0].codes[str(node.target)], runs[1].codes[str(node.target)])


def test_a_slew_that_was_set_is_refused_like_one_that_was_given(snn):
    still = forked(snn)
    next(network.modules_of(still.graph, STBIF))[1].slew = 0
    with pytest.raises(StageError, match="slew=0: a neuron moves"):
        verify(still, torch.zeros(2, 4))


def test_c6_says_in_which_arithmetic(snn):
    told = conditions(snn)[-1].evidence
    assert "integer weights (8 bits)" in told
    assert "0 of 2 in float64" in told
    entries = tuple(replace(e, arithmetic="inexact", bits=float("inf")) for e in snn.note("exactness"))
    rough = forked(snn)
    network.remark(rough.graph, exactness=entries)
    assert "off the grid: 0, 2 (same kernels, same batches)" in conditions(rough)[-1].evidence


def first_weight(snn: SpikingNetwork) -> torch.Tensor:
    return next(p for p in snn.graph.parameters() if p.dim() == 2)


def test_c1_and_c6_of_tensors_that_were_changed(snn):
    turned = forked(snn)
    next(network.modules_of(turned.graph, STBIF))[1].threshold.fill_(-1.0)
    assert broken(turned) == {"C1", "C6"}
    noisy = forked(snn)
    first_weight(noisy).data.add_(1e-3 * torch.randn_like(first_weight(noisy)))
    assert broken(noisy) == {"C6"}
    assert "no longer adds up exactly" in conditions(noisy)[-1].evidence


def test_c6_of_floats_is_of_the_engine(snn):
    x = torch.randn(8, 4)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    floats = convert(model, x[:1], x, weight_bits=None)
    assert broken(floats) == set()
    assert [c.id for c in verify(floats, x, engine=Engine.EVENT).conditions if not c.holds] == ["C6"]


def test_what_is_certified_is_what_ran(snn):
    """Torch does not see changes through ``.data``: an engine may hold packed weights of before."""
    changed, x = forked(snn), torch.randn(16, 4)
    assert verify(changed, x).equal
    first_weight(changed).data.fill_(float("nan"))
    assert not verify(changed, x).equal


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(self.b(torch.relu(self.a(x))))


def test_nan_is_named():
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    model = Logarithm()
    qann = quantize(morph(capture(model, x[:1])), 8, x)
    found = verify(spike(qann), x)
    lost = int(qann(x).isnan().any(1).sum())
    assert (found.equal, found.mismatches, found.nan) == (False, 0, lost)
    assert lost > 0
    with pytest.raises(EquivalenceError, match=f"the QANN itself returns NaN for {lost} of 32 images"):
        found.require()


class Shared(nn.Module):
    """Its answer is divided among the images of a large batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x))) / max(x.shape[0], 300)


def test_outputs_far_apart_are_not_laid_to_rounding(monkeypatch):
    seeing = sys.modules["spikezip.graph.capture"]
    monkeypatch.setattr(seeing, "_refuse_branches", lambda *_: None)  # were it to see nothing
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))  # half of them, a thread's, in 3 steps are many
    found = verify(convert(Shared().eval(), x, x), x, batch=256, engine=Engine.SWEEP)
    assert (found.equal, found.mismatches) == (False, 0) and found.apart > 0.1
    with pytest.raises(EquivalenceError, match=r"% of the greatest output apart, which is no rounding"):
        found.require()
    with pytest.raises(EquivalenceError, match=r"round differently in engine sweep"):
        replace(found, apart=1e-6).require()


@pytest.mark.parametrize("result", ["certificate", "record"])
def test_a_file_is_written_in_one_step_or_refused(snn, result, tmp_path):
    proof = verify(snn, torch.randn(2, 4))
    found = proof if result == "certificate" else Record({"format": "spikezip.record/1"})
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in ("nowhere/c.json", "file/c.json", "folder"):
        with pytest.raises(OutputError, match="cannot be written"):
            found.save(tmp_path / place, overwrite=True)
    with pytest.raises(OutputError, match="exists"):
        found.save(tmp_path / "file")
    found.save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text().startswith("{")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_images_that_did_not_settle_have_no_settling_time(snn):
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    times = sorted(verify(snn, x).settled_at)
    found = verify(snn, x, steps=times[16], batch=8).to_json()
    late = sum(t > times[16] for t in times)
    assert (found["outcome"], found["steps"]) == ("STEP_LIMIT", times[16])
    histogram = found["settled_at"].pop("histogram")
    assert found["settled_at"] == {"mean": None, "max": None, "unsettled": late} and late > 0
    assert sum(histogram.values()) == 32 - late and "-1" not in histogram
    whole = verify(snn, x).to_json()["settled_at"]
    assert (whole["mean"], whole["max"], whole["unsettled"]) == (sum(times) / 32, times[-1], 0)


def test_equal_on_these_images_is_no_proof_where_a_condition_fails(snn):
    odd, x = forked(snn), torch.randn(16, 4)
    next(network.modules_of(odd.graph, STBIF))[1].initial_code = 9
    found = verify(odd, x)
    assert found.equal
    with pytest.raises(EquivalenceError, match="but C1 does not hold"):
        found.require()
