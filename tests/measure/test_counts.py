"""Counts checked on paper, against loops over every spike and weight, and against the run itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hand_networks import Copies, image, spiking
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spikezip
from random_networks import BLOCKS, Drawn, shuffle_statistics
from spikezip.errors import InputError, StageError
from spikezip.graph import network, rewrite
from spikezip.measure.audit import audit
from spikezip.measure.counts import count
from spikezip.measure.streams import Reader, Streams
from spikezip.measure.windows import summed
from spikezip.measure.work import MEMORIES, OPERATIONS, Counts, Row
from spikezip.quantize.grid import FixedPoint
from spikezip.run import Engine
from spikezip.spike import Constant, Even


def row(counts: Counts, kind: str, which: int = 0) -> Row:
    return [r for r in counts.rows if r.kind == kind][which]


def each_step(work_row: Row, name: str) -> list[float]:
    return work_row.snn.operations[name].tolist() if name in work_row.snn.operations else []


# -- on paper ---------------------------------------------------------------------------------------------------------


def test_a_padded_strided_3x3_convolution():
    # 5x5 image, kernel 3, stride 2, padding 1: outputs 0, 1, 2 read the inputs -1..1, 1..3, 3..5. Inputs 0..4 are thus
    # read by 1, 2, 1, 2, 1 outputs in each direction. Two output channels: the corner (0, 0) feeds 2*1*1 = 2 synapses,
    # (1, 1) feeds 2*2*2 = 8, (1, 2) feeds 2*2*1 = 4.
    snn = spiking(Copies(1, nn.Conv2d(1, 2, 3, 2, 1)), (1, 5, 5))
    counts = count(snn, image((1, 5, 5), {(0, 0, 0): 3, (0, 1, 1): 2, (0, 1, 2): 1}), 5)
    convolution = row(counts, "conv2d", 1)
    # t=1: all three fire, 2 + 8 + 4. t=2: the first two, 2 + 8. t=3: the corner, 2. Then silence.
    assert each_step(convolution, "ac") == [14, 10, 2, 0, 0]
    assert convolution.snn.total("mac") == 0
    # Spikes read: 3, 2, 1. Each costs two multiplications to find its first synapse (Lemaire et al.).
    assert each_step(convolution, "spike_read") == [3, 2, 1, 0, 0]
    assert convolution.snn.total("address_mul") == 12
    # The QANN multiplies inside the borders only: 2 * (1+2+1+2+1)^2 = 98 (162 with padding), of which the three
    # activations that are not 0 have 14. Its bias is 2*3*3 additions; so is the SNN's, once.
    assert convolution.qann.total("mac") == 98
    assert convolution.qann.total("mac_nonzero") == 14
    assert convolution.qann.total("weight_read") == convolution.qann.total("activation_read") == 98
    assert each_step(convolution, "add") == [18, 0, 0, 0, 0]
    # The analog input: a 1x1 convolution of 25 pixels, multiplied once.
    assert each_step(row(counts, "conv2d"), "mac") == [25, 0, 0, 0, 0]
    assert counts.synops.tolist() == [25 + 14, 25 + 24, 25 + 26, 25 + 26, 25 + 26]
    assert counts.settled
    assert counts.spikes.tolist() == [3, 2, 1, 0, 0]


def test_a_grouped_convolution():
    # 4 channels in 2 groups, 6 outputs: a channel feeds the 3 outputs of its group. 4x4 image, kernel 3, no padding:
    # inputs 0..3 are read by 1, 2, 2, 1 outputs. (0,0,0): 3*1*1 = 3; (3,1,2): 3*2*2 = 12.
    snn = spiking(Copies(4, nn.Conv2d(4, 6, 3, groups=2)), (4, 4, 4))
    counts = count(snn, image((4, 4, 4), {(0, 0, 0): 1, (3, 1, 2): 2}), 3)
    assert each_step(row(counts, "conv2d", 1), "ac") == [15, 12, 0]
    # QANN: 6 outputs * 2*2 positions * 2 channels of a group * 9 weights.
    assert row(counts, "conv2d", 1).qann.total("mac") == 6 * 4 * 2 * 9


def test_a_padded_strided_grouped_3x3_convolution():
    # 4 channels in 2 groups, 6 outputs, 5x5 image, stride 2, padding 1: a spike feeds the 3 outputs of its group, and
    # in each direction the inputs 0..4 are read by 1, 2, 1, 2, 1 outputs. (0, 0, 0): 3*1*1 = 3; (1, 3, 3): 3*2*2 = 12;
    # (2, 1, 4): 3*2*1 = 6; (3, 4, 4): 3.
    snn = spiking(Copies(4, nn.Conv2d(4, 6, 3, 2, 1, groups=2)), (4, 5, 5))
    codes = {(0, 0, 0): 3, (1, 3, 3): 2, (2, 1, 4): 1, (3, 4, 4): 2}
    counts = count(snn, image((4, 5, 5), codes), 4)
    convolution = row(counts, "conv2d", 1)
    assert each_step(convolution, "ac") == [3 + 12 + 6 + 3, 3 + 12 + 3, 3, 0]
    assert each_step(convolution, "weight_read") == each_step(convolution, "ac")
    assert each_step(convolution, "spike_read") == [4, 3, 1, 0]
    # QANN: 6 outputs, 2 channels of a group, (1+2+1+2+1)^2 positions and taps within the borders; 24 of them not 0.
    assert convolution.qann.total("mac") == 6 * 2 * 49
    assert convolution.qann.total("mac_nonzero") == 24
    assert convolution.qann.memories["weight"].values == 6 * 2 * 9


class TwoStreams(nn.Module):
    """A linear layer that reads the sum of two neuron layers (a re-routed residual)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 4, bias=False)
        self.a.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        self.b.weight.data.copy_(torch.tensor([[1.5, 0.0], [0.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x)) + torch.relu(self.b(x)))


def test_each_stream_of_a_residual_sum_is_charged():
    # x = (2, 1): a has codes (2, 1), b has (3, 0). Every spike feeds the 4 synapses of its neuron.
    counts = count(spiking(TwoStreams(), (2,)), torch.tensor([[2.0, 1.0]]), 4)
    head = row(counts, "linear", 2)
    assert head.input == "streams:2"
    # t=1: a0, a1, b0. t=2: a0, b0. t=3: b0.
    assert each_step(head, "ac") == [12, 8, 4, 0]
    # Read as integers, a0 + b0 is one number that changes at t = 1, 2, 3, and a1 changes at t = 1.
    assert head.as_macs.tolist() == [8, 4, 4, 0]
    # Two streams with thresholds of their own need two copies of the weights.
    assert head.snn.memories["weight"].values == 2 * head.qann.memories["weight"].values == 16
    # A linear layer of the QANN reads its two activations once, and a weight for each MAC.
    assert [head.qann.total(name) for name in ("mac", "weight_read", "activation_read")] == [8, 8, 2]
    # The QANN adds the two codes first; the SNN adds nothing there.
    assert row(counts, "add").qann.total("add") == 2
    assert row(counts, "add").snn.total("add") == 0


class Difference(TwoStreams):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x)) - torch.relu(self.a(x)))


def test_streams_that_cancel_are_charged_all_the_same():
    # The very codes (2, 1) twice, one stream subtracted: 6 spikes of 4 synapses, though their sum is always 0.
    head = row(count(spiking(Difference(), (2,)), torch.tensor([[2.0, 1.0]]), 3), "linear", 2)
    assert each_step(head, "ac") == [16, 8, 0]
    assert head.as_macs.tolist() == [0, 0, 0]


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.copy = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 3, bias=False)
        self.copy.weight.data.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        spikes = torch.relu(self.copy(x))
        return self.head(spikes + spikes)


def test_a_stream_that_arrives_twice_is_charged_twice():
    counts = count(spiking(Doubled(), (2,)), torch.tensor([[1.0, 0.0]]), 2)
    assert each_step(row(counts, "linear", 1), "ac") == [6, 0]
    assert row(counts, "linear", 1).input == "streams:2"


class Residual(nn.Module):
    """The vanilla block: the identity ends in the membranes behind the addition."""

    def __init__(self):
        super().__init__()
        self.copy = nn.Linear(2, 2, bias=False)
        self.main = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 3, bias=False)
        self.copy.weight.data.copy_(torch.eye(2))
        self.main.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.copy(x))
        return self.head(torch.relu(self.main(x) + x))


def test_an_identity_into_membranes_is_a_synapse_for_each_spike():
    counts = count(spiking(Residual(), (2,)), torch.tensor([[2.0, 1.0]]), 3)
    # 3 spikes of the first layer: 2 synapses each in main, 1 each into the membrane behind the sum.
    assert each_step(row(counts, "linear", 1), "ac") == [4, 2, 0]
    assert each_step(row(counts, "ST-BIF", 1), "ac") == [2, 1, 0]


class Membranes(nn.Module):
    """Two blocks whose identities hand their currents on (MS): z, z + p(z), z + p(z) + q(...)."""

    def __init__(self):
        super().__init__()
        self.stem, self.p, self.q = (nn.Linear(2, 2, bias=False) for _ in range(3))
        self.head = nn.Linear(2, 3, bias=False)
        self.stem.weight.data.copy_(torch.eye(2))
        self.p.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        self.q.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        a = z + self.p(torch.relu(z))
        b = a + self.q(torch.relu(a))
        return self.head(torch.relu(b))


def test_a_current_that_a_second_neuron_needs_is_handed_on_by_additions():
    # x = (2, 1). z = (2, 1) from t = 1 on: its neuron has it from the synapses; the second's membranes are handed it,
    # 2 additions at t = 1. r = relu(z) fires twice and once; p adds r0, so a0 = 2 + 1 + 1 rises at t = 1, 2 (3, 4) and
    # a1 = 1 at t = 1. The third neuron is handed every change of a: 2 additions at t = 1, 1 at t = 2; not z once more.
    counts = count(spiking(Membranes(), (2,)), torch.tensor([[2.0, 1.0]]), 6)
    assert each_step(row(counts, "ST-BIF", 0), "add") == [2, 1, 0, 0, 0, 0]  # its own resets: one a spike
    own = [2, 1, 1, 1, 0, 0]  # codes (4, 1): spikes at t = 1..4 and t = 1, each a reset
    assert each_step(row(counts, "ST-BIF", 1), "spike_write") == own
    assert each_step(row(counts, "ST-BIF", 1), "add") == [2 + 2, 1, 1, 1, 0, 0]
    assert each_step(row(counts, "ST-BIF", 2), "spike_write") == own
    assert each_step(row(counts, "ST-BIF", 2), "add") == [2 + 2, 1 + 1, 1, 1, 0, 0]
    # Every synaptic operation reads single streams; the QANN adds each sum once.
    assert [r.input for r in counts.rows if r.kind == "linear"][1:] == ["ternary"] * 3
    assert [r.qann.total("add") for r in counts.rows if r.kind == "add"] == [2, 2]


@pytest.mark.parametrize(
    ("pool", "windows"),
    # Without overlap a pixel is in one window; kernel 3, stride 1 on 4x4: pixel (1, 1) is in 2*2 of the 2x2 windows.
    [(nn.AvgPool2d(2), 1), (nn.AvgPool2d(3, 1), 4), (nn.AdaptiveAvgPool2d(2), 1)],
)
def test_a_spike_goes_through_every_window_of_an_average(pool, windows):
    snn = spiking(Copies(1, nn.Sequential(pool, nn.Flatten(), nn.Linear(4, 3))), (1, 4, 4))
    counts = count(snn, image((1, 4, 4), {(0, 1, 1): 5}), 6)
    head = row(counts, "linear")
    assert head.input == "fractional"
    assert each_step(head, "ac") == [3 * windows] * 5 + [0]
    # Read after the pool, each changed average is a number to multiply.
    assert head.as_macs.tolist() == [3 * windows] * 5 + [0]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_average_without_its_division_is_the_sum_of_each_window(dims):
    pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](3, 2, 1)
    shape = (1, *[5] * dims)
    graph = spikezip.capture(nn.Sequential(pool), torch.rand(2, *shape))
    node = next(n for n in graph.graph.nodes if "avg_pool" in n.name)
    found = summed(node, torch.ones(1, *shape, dtype=torch.float64))
    assert found is not None
    # Windows of 3 with stride 2 and padding 1 over 5 values hold 2, 3 and 2 of them, in each direction.
    expected = torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64)
    for _ in range(dims - 1):
        expected = expected.unsqueeze(-1) * torch.tensor([2.0, 3.0, 2.0], dtype=torch.float64)
    assert torch.equal(found[0, 0], expected)


def test_averages_cost_the_qann_additions_and_multiplications():
    snn = spiking(Copies(1, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))), (1, 4, 4))
    pool = next(r for r in count(snn, torch.ones(1, 1, 4, 4), 1).rows if "pool" in r.kind or r.kind == "mean")
    assert (pool.qann.total("add"), pool.qann.total("mul")) == (15, 1)
    assert pool.snn.operations == {}


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2)])
def test_max_pooling_compares_and_passes_its_own_spikes_on(pool):
    # 2x2 windows. (0,0) and (0,1) share one: codes 2 and 3, so its maximum rises at t = 1, 2, 3.
    snn = spiking(Copies(1, nn.Sequential(pool, nn.Flatten(), nn.Linear(4, 5))), (1, 4, 4))
    counts = count(snn, image((1, 4, 4), {(0, 0, 0): 2, (0, 0, 1): 3}), 4)
    maximum = next(r for r in counts.rows if "max_pool" in r.kind)
    assert each_step(maximum, "compare") == [2, 2, 1, 0]  # one for each spike and window it is in
    assert each_step(maximum, "spike_write") == [1, 1, 1, 0]
    assert maximum.qann.total("compare") == 4 * 3
    assert row(counts, "linear").input == "ternary"
    assert each_step(row(counts, "linear"), "ac") == [5, 5, 5, 0]


def test_a_neuron_and_its_tracer():
    # One neuron, code 3: it fires at t = 1, 2, 3 and is settled at 3; the silent step 4 shows that, then all stops.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    counts = count(spiking(model, (1,)), torch.tensor([[3.0]]), 6)
    neuron = row(counts, "ST-BIF")
    assert each_step(neuron, "update") == [1, 1, 1, 1, 0, 0]
    assert each_step(neuron, "compare") == [2, 2, 2, 2, 0, 0]
    # v = 0.5 + 3 - S is 1 or more at t = 1, 2, 3: then alone the tracer is read and compared with its limit.
    assert each_step(neuron, "tracer_compare") == [1, 1, 1, 0, 0, 0]
    for name in ("tracer_add", "tracer_write", "add", "membrane_write", "spike_write"):
        assert each_step(neuron, name) == [1, 1, 1, 0, 0, 0]
    assert neuron.snn.memories["tracer"].bits == 3  # 8 levels


def test_a_neuron_that_starts_at_its_code_sends_nothing():
    # Codes 3 and 1, both from 2: one spike up, one down. What 2 stands for is there before, and costs nothing.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 4, bias=False))
    model[0].weight.data = torch.eye(2)
    model[2].weight.data.fill_(1.0)
    counts = count(spiking(model, (2,), initial_code=2), torch.tensor([[3.0, 1.0], [2.0, 2.0]]), 3)
    assert each_step(row(counts, "ST-BIF"), "spike_write") == [1, 0, 0]  # 2 spikes of 2 images
    assert each_step(row(counts, "linear", 1), "ac") == [4, 0, 0]


@pytest.mark.parametrize("code", [0, 2])
def test_tokens_are_new_in_the_first_step_whatever_their_numbers_and_wherever_tracers_start(code):
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tokens = torch.tensor([[0, 0, 0], [0, 1, 2]])
    counts = count(spikezip.convert(model, tokens[:1], tokens, levels=4, initial_code=code), tokens, 6)
    assert each_step(row(counts, "embedding"), "add") == [3, 0, 0, 0, 0, 0]
    assert each_step(row(counts, "embedding"), "activation_write") == [12, 0, 0, 0, 0, 0]
    assert each_step(row(counts, "layer_norm"), "mul") == [36, 0, 0, 0, 0, 0]  # 3 a value


def test_a_max_pool_from_an_initial_code_passes_on_what_changes():
    snn = spiking(Copies(1, nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 5))), (1, 2, 2), initial_code=1)
    counts = count(snn, image((1, 2, 2), {(0, 0, 0): 3, (0, 1, 1): 1}), 4)
    maximum = next(r for r in counts.rows if "max_pool" in r.kind)
    # Two of four neurons leave code 1 for 0, one for 3; the maximum goes from 1 to 3 and was 1 before.
    assert each_step(maximum, "spike_write") == [1, 1, 0, 0]


def test_a_neuron_at_its_limit_still_asks_its_tracer():
    # Drive 9 of at most 7: the membrane stays above the threshold, and the tracer says no, until the run stops.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    counts = count(spiking(model, (1,)), torch.tensor([[9.0]]), 9)
    assert each_step(row(counts, "ST-BIF"), "tracer_compare") == [1] * 8 + [0]
    assert each_step(row(counts, "ST-BIF"), "tracer_add") == [1] * 7 + [0, 0]


def test_the_analog_input_is_multiplied_once_and_added_again_while_it_is_released():
    snn = spiking(Copies(1, nn.Conv2d(1, 2, 1), bias=True), (1, 3, 3), Even(3))
    counts = count(snn, torch.full((1, 1, 3, 3), 6.0), 5)
    first = row(counts, "conv2d")
    assert each_step(first, "mac") == [9, 0, 0, 0, 0]
    # A third of the bias in each of 3 steps, and the 9 sums again at t = 2 and 3.
    assert each_step(first, "add") == [9, 18, 18, 0, 0]


def test_graded_spikes_count_their_levels():
    snn = spiking(Copies(1, nn.Conv2d(1, 2, 1)), (1, 1, 1), slew=7)
    convolution = row(count(snn, torch.full((1, 1, 1, 1), 5.0), 2), "conv2d", 1)
    assert convolution.input == "graded"
    assert each_step(convolution, "ac") == [10, 0]


# -- every spike and every weight, in loops ---------------------------------------------------------------------------


def loops(size: tuple[int, int], conv: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The fan-out of each position by visiting each weight of each output (or input) position."""
    fanout = torch.zeros(conv.in_channels, *size)
    out = conv(torch.zeros(1, conv.in_channels, *size)).shape
    grouped_in, grouped_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for o, i, ky, kx in itertools.product(
        range(conv.out_channels), range(grouped_in), range(conv.kernel_size[0]), range(conv.kernel_size[1])
    ):
        channel = o // grouped_out * grouped_in + i
        away = [k * d - p for k, d, p in zip((ky, kx), conv.dilation, conv.padding, strict=True)]
        if isinstance(conv, nn.ConvTranspose2d):
            for y, x in itertools.product(range(size[0]), range(size[1])):
                to = (y * conv.stride[0] + away[0], x * conv.stride[1] + away[1])
                fanout[channel, y, x] += 0 <= to[0] < out[2] and 0 <= to[1] < out[3]
        else:
            for y, x in itertools.product(range(out[2]), range(out[3])):
                at = (y * conv.stride[0] + away[0], x * conv.stride[1] + away[1])
                if 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
                    fanout[(channel, *at)] += 1
    return fanout


@given(
    size=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
@example((7, 6), (3, 3), 2, 1, 1, 2, False, 0)
@example((7, 7), (3, 2), 2, 2, 2, 2, False, 1)
@example((5, 6), (3, 3), 2, 1, 1, 1, True, 2)
@example((5, 5), (3, 3), 3, 1, 2, 2, True, 3)
@settings(max_examples=6, deadline=None)
def test_counts_equal_a_loop_over_every_spike_and_weight(
    size, kernel, stride, padding, dilation, groups, transposed, seed
):
    if transposed:
        padding = min(padding, *(dilation * (k - 1) for k in kernel))
        conv = nn.ConvTranspose2d(2, 4, kernel, stride, padding, groups=groups, dilation=dilation)
    else:
        conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    expected = loops(size, conv)
    codes = torch.randint(0, 4, (2, 2, *size), generator=torch.Generator().manual_seed(seed)).float()
    counts = count(spiking(Copies(2, conv), (2, *size)), codes, 4)
    name = "conv_transpose2d" if transposed else "conv2d"
    found = row(counts, name, 0 if transposed else 1)
    for t in range(1, 5):
        fired = (codes >= t).float()  # a neuron that copies code c fires at t = 1 .. c
        assert found.snn.operations["ac"][t - 1] == float((fired * expected).sum()) / 2
    assert found.qann.total("mac") == float(expected.sum())


# -- any network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("blocks", [sorted(BLOCKS)[i::3] for i in range(3)], ids=" + ".join)
def test_counts_agree_with_the_run_and_leave_nothing_without_a_memory(blocks, code):
    model = shuffle_statistics(Drawn(blocks, outputs=2)).eval()
    snn = spikezip.convert(model, torch.rand(2, 2, 5, 5), torch.rand(8, 2, 5, 5), initial_code=code)
    images = torch.rand(3, 2, 5, 5)
    run = snn.run(images, engine=Engine.REFERENCE)
    counts = count(snn, images, batch=2)
    assert counts.settled
    assert counts.steps == int(run.settled_at.max()), "as many steps as the run itself takes"
    assert torch.allclose(counts.spikes * 3, run.total_spikes.sum(1).double()[: counts.steps])
    for r in counts.rows:
        for work in (r.snn, r.qann, r.ann):
            for name, value in work.operations.items():
                assert name in OPERATIONS
                assert bool((value >= 0).all())
                memory, _, way = name.rpartition("_")
                if way in ("read", "write") and memory in MEMORIES and work.total(name) > 0:
                    assert memory in work.memories, f"{r.name} ({r.kind}): {name} of no memory"


def test_products_are_multiply_accumulates_and_functions_are_named():
    model = shuffle_statistics(Drawn(["attention", "squeeze and excitation"])).eval()
    snn = spikezip.convert(model, torch.rand(2, 2, 5, 5), torch.rand(8, 2, 5, 5))
    counts = count(snn, torch.rand(2, 2, 5, 5))
    products = [r for r in counts.rows if r.kind == "matmul"]
    assert [r.input for r in products] == ["ternary x ternary"] * 2
    assert all(r.snn.total("mac") > 0 and r.snn.total("ac") == 0 for r in products)
    assert products[0].qann.total("mac") == 2 * 9 * 9 * 2  # heads * tokens * tokens * width of a head
    said = "\n".join(counts.uncounted)
    for name in ("blocks.0.norm (layer_norm)", "blocks.0 (softmax)", "blocks.1 (sigmoid)", "blocks.1 (silu)"):
        assert name in said
    norm = row(counts, "layer_norm")
    # Evaluated at most once a step and image, and at least once: 3 multiplications for each of 9 tokens of 4.
    assert 3 * 36 <= norm.snn.total("mul") <= 3 * 36 * counts.steps
    assert norm.snn.total("mul") % (3 * 36 / 2) == 0


class Outer(nn.Module):
    """The product of two vectors of spikes, each value of one by each of the other."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 2, bias=False), nn.Linear(4, 2, bias=False)
        self.q.weight.data.copy_(torch.eye(4)[:2])
        self.k.weight.data.copy_(torch.eye(4)[2:])

    def forward(self, x: Tensor) -> Tensor:
        q, k = torch.relu(self.q(x)), torch.relu(self.k(x))
        return (q.unsqueeze(2) @ k.unsqueeze(1)).flatten(1)


def test_a_matrix_product_on_paper():
    # q = (2, 1), k = (1, 0): a spike of either meets the 2 values of the other. t=1: 2 + 1 spikes, t=2: one.
    counts = count(spiking(Outer(), (4,)), torch.tensor([[2.0, 1.0, 1.0, 0.0]]), 3)
    product = row(counts, "matmul")
    assert each_step(product, "mac") == [6, 2, 0]
    assert each_step(product, "activation_read") == [6, 2, 0]
    assert product.qann.total("mac") == 4
    assert product.qann.total("mac_nonzero") == 2  # both of q by the one of k


class Squared(nn.Module):
    """A matrix of spikes multiplied by itself."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.copy, self.head, self.product = nn.Linear(2, 2, bias=False), nn.Linear(2, 3), product
        self.copy.weight.data.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.copy(x))
        return self.head(torch.relu(self.product(h, h))).mean(1)


@pytest.mark.parametrize(
    ("product", "kind", "macs", "dense"),
    [(torch.matmul, "matmul", [12, 4, 0], 8), (torch.mul, "mul", [6, 2, 0], 4)],
)
def test_a_product_of_a_stream_with_itself_on_paper(product, kind, macs, dense):
    # 3 spikes at t=1, one at t=2; each is one of either factor, and meets a row or a column of the other (or a value).
    snn = spiking(Squared(product), (2, 2))
    counted = count(snn, torch.tensor([[[2.0, 1.0], [1.0, 0.0]]]), 3)
    squared = row(counted, kind)
    assert squared.input == "ternary x ternary"
    assert each_step(squared, "mac") == macs
    for name in ("ac", "weight_read"):
        assert squared.snn.total(name) == 0
    assert "weight" not in squared.snn.memories
    assert squared.qann.total({"matmul": "mac"}.get(kind, kind)) == dense
    found = next(r for r in audit(snn).rows if r.op == kind)
    assert (found.synapses, found.spike_driven) == (dense, False)


def test_a_normalisation_on_paper():
    # 4 values: 3 multiplications and 4 additions each, and every value read and written, whenever one has changed.
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].weight.data.copy_(torch.eye(4))
    counts = count(spiking(model, (4,)), torch.tensor([[2.0, 0.0, 0.0, 0.0]]), 4)
    norm = row(counts, "layer_norm")
    for name, each in {"mul": 12, "add": 16, "activation_write": 4}.items():
        assert each_step(norm, name) == [each, each, 0, 0]
        assert norm.qann.total(name) == norm.ann.total(name) == each
    assert norm.qann.total("activation_read") == 4
    # The accumulators: each spike is added into one (read and written), and all are read by the evaluation.
    assert each_step(norm, "ac") == each_step(norm, "membrane_write") == [1, 1, 0, 0]
    assert each_step(norm, "membrane_read") == [1 + 4, 1 + 4, 0, 0]


class Rerouted(nn.Module):
    """Two blocks whose sums of spikes are read by what follows."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Linear(2, 2, bias=False) for _ in range(3))
        self.head = nn.Linear(2, 3, bias=False)
        for layer in (self.stem, self.one, self.two):
            layer.weight.data.copy_(torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.one(x))
        x = x + torch.relu(self.two(x))
        return self.head(x)


def test_sums_of_spikes_rounded_to_fixed_point_are_told_and_priced_as_that():
    snn = spiking(Rerouted(), (2,))
    sums = [n for n in snn.graph.graph.nodes if network.op_name(n) == "add"]
    for node in sums:  # as an integer network does where a sum lies on no grid
        rounding = rewrite.free_name(snn.graph, f"{node.name}_grid")
        snn.graph.add_submodule(rounding, FixedPoint(8, 2**16))
        with snn.graph.graph.inserting_after(node):
            rounded = snn.graph.graph.call_module(rounding, (node,))
        rounded.meta = dict(node.meta)
        readers = [user for user in node.users if network.op_name(user) == "linear"]
        for reader in readers:
            reader.replace_input_with(node, rounded)
    snn.graph.recompile()
    counts = count(snn, torch.tensor([[1.0, 0.0]]), 3)
    assert [r.input for r in counts.rows if r.kind == "linear"] == ["analog input", "ternary", *["fixed point"] * 2]
    first, second = (row(counts, "FixedPoint", i) for i in range(2))
    assert first.qann.total("add") == second.qann.total("add") == 2  # an addition and a shift a value
    # stem fires at t=1 and with it the first block (1 + 1 = 2 in its sum): both values are rounded anew at t=1 alone.
    assert each_step(first, "add") == [2, 0, 0]
    # The second block's neuron goes to 2 one step at a time; the first sum is handed on by one addition at t=1.
    assert each_step(second, "add") == [2 + 1, 2, 0]
    assert each_step(row(counts, "linear", 3), "mac") == [3, 3, 0]


def test_fan_out_of_shapes_that_move_values():
    class Moves(nn.Module):
        def __init__(self):
            super().__init__()
            self.copy = nn.Conv2d(2, 2, 1)
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.copy(x))  # [2, 2, 3]
            # Channel 0 twice (once rolled), channel 1 never: 12 values, 3 synapses each.
            left = x[:, :1]
            return self.head(torch.cat([left, left.roll(1, -1)], 1).flatten(1))

    snn = spiking(Moves(), (2, 2, 3))
    operand = [o for o in Streams(snn).operands() if o.role is Reader.SYNAPSES][1]
    assert operand.streams[0].fanout[0, 0].unique().tolist() == [6]
    assert operand.streams[0].fanout[0, 1].unique().tolist() == [0]
    assert operand.kind == "ternary"


def test_only_so_many_images_are_run_and_said():
    snn = spiking(Copies(1, nn.Conv2d(1, 1, 1)), (1, 2, 2))
    assert count(snn, torch.rand(9, 1, 2, 2), 2, limit=4).images == 4


def test_what_cannot_be_counted_is_refused():
    snn = spiking(Copies(1, nn.Conv2d(1, 1, 1)), (1, 2, 2), Constant())
    with pytest.raises(StageError, match="say how many steps"):
        count(snn, torch.rand(1, 1, 2, 2))
    with pytest.raises(InputError, match="shape"):
        count(snn, torch.rand(1, 3), 4)
    with pytest.raises(StageError, match="limit=0"):
        count(snn, torch.rand(1, 1, 2, 2), 4, limit=0)
    with pytest.raises(StageError, match="steps=0"):
        count(snn, torch.rand(1, 1, 2, 2), 0)


def test_a_matrix_on_the_left_of_a_product_is_stored_whole():
    """``W @ y`` costs what ``y @ W.T`` costs."""

    class Mixed(nn.Module):
        def __init__(self, left: bool, mix: Tensor):
            super().__init__()
            self.left, self.mix = left, nn.Parameter(mix if left else mix.T.contiguous())

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            return torch.relu(self.mix @ y if self.left else (y.transpose(1, 2) @ self.mix).transpose(1, 2)).mean(1)

    torch.manual_seed(0)
    mix, x = torch.randn(12, 9) / 3, torch.randn(16, 9, 4)
    rows = []
    for left in (True, False):
        snn = spikezip.convert(Mixed(left, mix), x[:1], x, levels=4)
        rows.append(row(count(snn, x[:4], 8), "matmul"))
        (stored,) = spikezip.measure(snn, x[:4], steps=4)["weights"]
        assert (stored["min"] < 0 < stored["max"]) and sum(stored["histogram"]["counts"]) == 12 * 9
    for name in ("snn", "qann", "ann"):
        found, wanted = (getattr(r, name) for r in rows)
        assert found.memories["weight"] == wanted.memories["weight"]
        assert found.memories["weight"].values == 12 * 9
        assert found.total("weight_read") == wanted.total("weight_read")
