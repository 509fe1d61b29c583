"""Every way the sweep saves work gives what the reference gives, to the bit."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fast_ways import add_up_spike_by_spike
from random_networks import BLOCKS, Drawn, quantize_everywhere, shuffle_statistics
from spikezip.graph import capture, network
from spikezip.kernels import Apart, Joined, Rows, Sum, Synapse, max_pool2d, native, threads
from spikezip.levels import Levels
from spikezip.morph import morph
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.run import block as blocks
from spikezip.run.plan import _changes_no_code, plan_of
from spikezip.run.reference import reference
from spikezip.run.result import Run
from spikezip.run.sweep import _evenly, sweep
from spikezip.spike import Constant, Even, Pulse, SpikingNetwork, spike

ENCODINGS = [Pulse(), Even(5), Constant()]


@pytest.fixture(params=["native", "events", "torch"])
def scans(request, monkeypatch):
    """With the compiled scan, however small the work; with event-driven synapses too; and without either."""
    if request.param != "torch":
        monkeypatch.setattr(native, "_WORTH_COMPILING", 0)
        if native.library() is None:
            pytest.skip("no C++ compiler here")
        if request.param == "events":
            if not hasattr(native.library(), "spikezip_events"):
                pytest.skip("no AVX2 here")
            add_up_spike_by_spike(monkeypatch)
    else:
        monkeypatch.setattr(native, "suits", lambda terms, start: False)
    return request.param


class Net(nn.Module):
    """Convolutions of several geometries, overlapping and padded pooling, a residual, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.down = nn.Conv2d(16, 24, 3, stride=(2, 1), padding=(1, 0))
        self.mix = nn.Conv2d(24, 24, 1, groups=2, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.depthwise(x) + x)
        x = torch.max_pool2d(x, 3, 2, 1)
        x = torch.relu(self.down(x))
        x = torch.relu(self.mix(x) + 0.5 * x)
        return self.head(x.amax((2, 3)))


@functools.cache
def convert(name: str, levels: int | Levels = 6) -> tuple[fx.GraphModule, Tensor]:
    """An integer QANN and images; converted once for all tests."""
    if name == "net":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, images = Net(), torch.randn(5, 2, 12, 10)
    else:
        model = shuffle_statistics(Drawn([name, "chain"], outputs=2, seed=3))
        images = torch.randn(3, *Drawn.input_shape, generator=torch.Generator().manual_seed(1))
    qann = quantize_everywhere(morph(capture(model.eval(), images[:2])), levels, images)
    return to_integer(qann), images


def net(levels: int | Levels = 6, **choices) -> tuple[SpikingNetwork, Tensor]:
    qann, images = convert("net", levels)
    return spike(qann, **choices), images


def assert_same(found: Run, wanted: Run) -> None:
    assert torch.equal(found.settled_at, wanted.settled_at)
    assert (found.outcome, found.t_off, found.steps) == (wanted.outcome, wanted.t_off, wanted.steps)
    for a, b in zip(found.outputs, wanted.outputs, strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    for field in ("spikes", "negative", "codes"):
        for name, values in getattr(wanted, field).items():
            assert torch.equal(getattr(found, field)[name], values), (field, name)
            assert getattr(found, field)[name].dtype == values.dtype


@pytest.mark.parametrize("encoding", ENCODINGS, ids=repr)
@pytest.mark.parametrize("signed", [False, True])
def test_rows_scan_and_bytes_change_nothing(scans, encoding, signed):
    snn, images = net(encoding=encoding, levels=Levels(-3, 4) if signed else 6)
    assert len(plan_of(snn).synapses) == 4
    wanted = reference(snn, (images,), 40)
    for block, chunk in ((32, 8), (3, 2), (40, 1)):
        assert_same(sweep(snn, (images,), 40, block=block, chunk=chunk), wanted)


class Along(nn.Module):
    """Convolutions along a line, over images or in volumes: grouped, dilated, strided; residuals."""

    def __init__(self, dims: int):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.dims = tuple(range(2, 2 + dims))
        self.stem = conv(2, 16, 3, padding=1)
        self.spread = conv(16, 16, 3, padding=2, dilation=2, groups=16)
        self.down = conv(16, 24, 2, stride=2)
        self.mix = conv(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.down(torch.relu(self.spread(x) + x)))
        return self.head(torch.relu(self.mix(x) + x).amax(self.dims))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_any_dimensions_take_bytes(monkeypatch, scans, dims):
    from spikezip.kernels.synapse import Synapse, _trusted

    if not _trusted(128, max(dims, 2)):
        pytest.skip("no exact 8-bit kernels here")
    torch.manual_seed(0)
    images, taken = torch.randn(4, 2, *(12, 10, 6)[:dims]), []
    qann = quantize(morph(capture(Along(dims).eval(), images[:2])), Levels(-2, 5), images)
    compute = Synapse.__call__
    monkeypatch.setattr(
        Synapse, "__call__", lambda self, *args, **how: taken.append(self) or compute(self, *args, **how)
    )
    for encoding in (Pulse(), Even(3)):
        snn = spike(to_integer(qann), encoding)
        assert_same(sweep(snn, (images,), 40, block=8, chunk=3), reference(snn, (images,), 40))
        convolutions = [s for s in plan_of(snn).synapses.values() if s.geometry]
        assert len(convolutions) == 3
        assert set(map(id, taken)) == set(map(id, convolutions))
        taken.clear()


class Gated(nn.Module):
    """Channels times what is found of all of them, as squeeze-and-excite does; and a square."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(2, 8, 3), nn.Linear(8, 8)
        self.mix, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.amax((2, 3))))[:, :, None, None]
        x = torch.relu(self.mix(x))
        return self.head((x * x).amax((2, 3)))


@pytest.mark.parametrize(("levels", "bytes"), [(Levels(0, 7), 2), (Levels(-4, 9), 2), (Levels(-16, 9), 0)])
def test_products_of_codes_are_bytes_where_these_hold_them(monkeypatch, scans, levels, bytes):
    torch.manual_seed(0)
    images, found = torch.randn(4, 2, 9, 8), set()
    qann = quantize_everywhere(morph(capture(Gated().eval(), images[:2])), levels, images)
    snn = spike(to_integer(qann), Even(3))
    compute = blocks.Block._multiplied

    def noting(self, node):
        if (product := compute(self, node)) is not None:
            found.add(node)
        return product

    monkeypatch.setattr(blocks.Block, "_multiplied", noting)
    assert_same(sweep(snn, (images,), 40, block=8, chunk=3), reference(snn, (images,), 40))
    assert len(found) == bytes


@pytest.mark.parametrize("slew", [2, 100])
def test_any_slew(scans, slew):
    snn, images = net(slew=slew)
    assert_same(sweep(snn, (images,), 12, block=5, chunk=3), reference(snn, (images,), 12))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_way_of_wiring(scans, name):
    qann, images = convert(name)
    exact = all(e.arithmetic in ("float32", "float64") for e in network.note(qann, "exactness"))
    for encoding in (Pulse(), Even(3)):
        snn = spike(qann, encoding)
        found, wanted = sweep(snn, (images,), 25, block=4, chunk=2), reference(snn, (images,), 25)
        if exact:
            assert_same(found, wanted)
        else:  # analog operations round: only how far they may differ is bounded, by one level
            assert max(float((found.codes[k] - v).abs().max()) for k, v in wanted.codes.items()) <= 1


def test_states_and_running_on(scans):
    snn, images = net()
    first = sweep(snn, (images,), 3, stop=False, block=2, chunk=2)
    other = images.flip(0)
    wanted = reference(snn, (other,), 30, state=first.state, stop=False)
    assert_same(sweep(snn, (other,), 30, state=first.state, stop=False, block=8, chunk=2), wanted)


def test_observers_are_told_every_step(scans):
    snn, images = net(encoding=Even(3))
    told: dict[str, dict[tuple[int, int], Tensor]] = {"reference": {}, "sweep": {}}

    def observer(engine):
        def observe(layer, t, indices, codes):
            for k in range(codes.shape[0]):
                for row, image in enumerate(indices.tolist()):
                    told[engine][layer, t + k, image] = codes[k, row].clone()

        return observe

    reference(snn, (images,), 20, stop=False, observe=observer("reference"))
    sweep(snn, (images,), 20, stop=False, observe=observer("sweep"), block=6, chunk=2)
    assert told["sweep"].keys() == told["reference"].keys()
    assert all(torch.equal(told["sweep"][k], v) for k, v in told["reference"].items())


def test_steps_without_change_cost_nothing(monkeypatch):
    """A layer is computed for the rows in which its input changed, not for all steps."""
    snn, images = net()
    rows: dict[int, int] = {}
    compute = blocks.Block._synapse

    def counting(self, node):
        found = compute(self, node)
        if found is not None:
            rows[len(rows)] = found.rows.shape[0]
        return found

    monkeypatch.setattr(blocks.Block, "_synapse", counting)
    run = sweep(snn, (images,), 200, block=200)
    assert rows
    settled = int(run.settled_at.max())
    assert settled < 60
    assert max(rows.values()) <= settled * images.shape[0]


@pytest.mark.parametrize(("block", "chunk"), [(32, 8), (3, 2)])
def test_outputs_are_kept_for_no_more_steps_than_were_run(block, chunk):
    snn, images = net()
    found = sweep(snn, (images,), 200, block=block, chunk=chunk)
    assert found.steps < 32
    assert found.logits.untyped_storage().nbytes() == found.logits.nbytes
    assert_same(found, reference(snn, (images,), 200))


def test_what_only_an_operation_reads_is_gone_before_it_runs(monkeypatch):
    snn, images = net()
    made, held = {}, []
    compute, operation_of = blocks.Block._compute, blocks.operation_of

    def kept(block, node):
        found = compute(block, node)
        if isinstance(found, Rows | Apart):
            made[node] = weakref.ref(found)
        return found

    def watched(node):
        last = [n for n in plan_of(snn).free.get(node, []) if n in made]
        held.append([n.name for n in last if made[n]() is not None])
        return operation_of(node)

    monkeypatch.setattr(blocks.Block, "_compute", kept)
    monkeypatch.setattr(blocks, "operation_of", watched)
    monkeypatch.setattr(Synapse, "takes", lambda *_: False)  # so that all that is read is numbers
    sweep(snn, (images,), 8)
    assert len(held) > 3 and not any(held)


def test_joined_codes_become_numbers_without_keeping_each_apart():
    torch.manual_seed(0)
    maps = [torch.tensor([[0], [1], [1]]), torch.tensor([[0], [0], [1]])]
    parts = [Rows(torch.randint(8, (2, 3), dtype=torch.uint8), m, torch.float32, 1, 0.5, top=7) for m in maps]
    joined = Joined(tuple(parts), torch.float32, 1, (0, 3))
    wanted = torch.cat([(p.rows[m.flatten()] - 1.0) * 0.5 for p, m in zip(parts, maps, strict=True)], 1)
    assert torch.equal(joined.value[joined.map.flatten()], wanted)
    assert not any("value" in vars(part) for part in parts)


def test_a_plan_is_kept_until_a_weight_changes():
    snn, images = net()
    before = sweep(snn, (images,), 40)
    kept = plan_of(snn)
    assert plan_of(snn) is kept
    with torch.no_grad():
        next(p for n, p in snn.graph.named_parameters() if "mix" in n).mul_(2)
    assert plan_of(snn) is not kept
    after = sweep(snn, (images,), 40)
    assert_same(after, reference(snn, (images,), 40))
    assert not torch.equal(before.logits[-1], after.logits[-1])


def test_networks_are_copied_without_their_plan():
    snn, images = net()
    plan = plan_of(snn)
    other = SpikingNetwork(copy.deepcopy(snn.graph), snn.encoding, snn.bias_encoding)
    assert plan_of(other) is not plan
    assert_same(sweep(other, (images,), 9), sweep(snn, (images,), 9))
    pickle.loads(pickle.dumps(snn.graph))


def test_no_compiler_one_warning_same_result(monkeypatch, tmp_path):
    snn, images = net()
    wanted = reference(snn, (images,), 20)
    monkeypatch.setattr(native, "_WORTH_COMPILING", 0)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr(native, "_path", lambda: tmp_path / "scan.so")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.warns(RuntimeWarning, match="Neurons run in torch instead") as told:
        assert_same(sweep(snn, (images,), 20), wanted)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(sweep(snn, (images,), 20), wanted)


@pytest.mark.parametrize("mended", [True, False])
def test_kernels_that_cannot_be_loaded_are_compiled_anew_or_left(monkeypatch, tmp_path, mended):
    path, compiled = tmp_path / "kernels.so", []
    path.write_bytes(b"\x7fELF that was cut off")
    monkeypatch.setattr(native, "_compile", compiled.append)  # says that all went well, and changes nothing
    if mended:
        load = native._load
        monkeypatch.setattr(native, "_load", lambda path: load(path) if not compiled else "loaded")
        assert native._open(path) == "loaded"
    else:
        with pytest.warns(RuntimeWarning, match=r"could not be loaded: .*Neurons run in torch instead"):
            assert native._open(path) is None
    assert compiled == [path]


def test_without_8_bit_kernels_floats_give_the_same(monkeypatch):
    from spikezip.kernels import synapse

    snn, images = net()
    wanted = reference(snn, (images,), 20)
    monkeypatch.setattr(synapse, "_trusted", lambda top, dims: False)
    assert_same(sweep(snn, (images,), 20), wanted)


class Turned(nn.Module):
    """The greatest of negated codes, which is the least of the codes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.mix, self.head = nn.Conv2d(4, 4, 1), nn.Linear(100, 3)

    def forward(self, x):
        pooled = torch.max_pool2d(-0.5 * torch.relu(self.conv(x)), 2)
        return self.head(torch.relu(self.mix(pooled)).flatten(1))


class Padded(nn.Module):
    """Along one dimension, the last convolution's windows lie in padding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 1)
        self.second = nn.Conv2d(8, 8, (2, 1), stride=3, padding=(3, 1))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).flatten(1)


class Unbatched(nn.Module):
    """Images are the lines of one image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 1)
        self.second = nn.Conv2d(8, 8, (1, 3))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x.flatten(2).transpose(0, 1)))).mean(2).t()


class Narrow(nn.Module):
    """Each channel by itself, with uneven strides, to a width of 1."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 16, 3, (1, 2), 1, groups=8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).flatten(1)


class Flat(nn.Module):
    """Each channel by itself, in volumes of depth 1."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 1), nn.Conv3d(8, 16, (3, 3, 2), (3, 1, 1), 1, groups=8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).unsqueeze(2)).flatten(1)


@pytest.mark.parametrize("model", [Padded, Unbatched, Narrow, Flat])
def test_convolutions_that_8_bit_kernels_do_not_take(model):
    torch.manual_seed(0)
    images = torch.randn(4, 2, 9, 1)
    qann = to_integer(quantize(morph(capture(model().eval(), images[:2])), Levels(-14, 14), images))
    snn = spike(qann)
    assert_same(sweep(snn, (images,), 40), reference(snn, (images,), 40))


def test_the_greatest_of_codes_times_a_negative_number(scans):
    torch.manual_seed(0)
    images = torch.randn(4, 1, 12, 12)
    snn = spike(to_integer(quantize(morph(capture(Turned(), images[:2])), 6, images)))
    assert_same(sweep(snn, (images,), 30), reference(snn, (images,), 30))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("function", [nn.functional.gelu, nn.functional.hardswish])
def test_a_smooth_function_goes_into_the_scan(scans, function, shared):
    """Where neurons alone read it, and it reads others; with 8 levels, and with 301, which no byte holds."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            h = function(self.first(x))
            return self.third(function(self.second(h)) + (h if shared else 0))

    torch.manual_seed(0)
    model, images = Block().eval(), torch.randn(5, 7, 12)
    for levels in (Levels(-2, 5), Levels(-30, 270)):
        qann = to_integer(quantize(morph(capture(model, images[:2])), levels, images))
        for encoding in (Pulse(), Even(3)):
            snn = spike(qann, encoding)
            assert len(plan_of(snn).smooth) == 1
            assert_same(sweep(snn, (images,), 30, block=4, chunk=2), reference(snn, (images,), 30))


class Clamped(nn.Module):
    """Clamps of several kinds before neurons: behind a layer, a residual, a quotient that is NaN at first."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(5))

    def forward(self, x):
        h = nn.functional.relu6(self.layers[0](x))
        h = nn.functional.hardtanh(self.layers[1](h), -0.5, 0.75)
        h = (h + self.layers[2](h)).clamp(max=1.5)
        q = (self.layers[3](h) / h.sum(-1, keepdim=True)).clamp(-2.0, 2.0)
        return self.layers[4](q)


@pytest.mark.parametrize("weight_bits", [8, None])
@pytest.mark.parametrize("levels", [Levels(0, 7), Levels(-4, 3), Levels(0, 300)])
def test_a_clamp_that_changes_no_code_is_left_out(scans, levels, weight_bits):
    """The clamp's own quantizer spans it; at a coarser scale it does cut off codes, and stays."""
    torch.manual_seed(0)
    model, images = Clamped().eval(), torch.randn(6, 12)
    if not weight_bits:  # numbers whose sums round nowhere: others' last bits depend on the batch, and the processor
        images = (images * 8).round() / 8
        for parameter in model.parameters():
            parameter.data = (parameter * 32).round() / 32
    qann = quantize_everywhere(capture(model, images[:2]), levels, images)
    clamps = [n for n in qann.graph.nodes if network.op_name(n) in ("relu6", "hardtanh", "clamp")]
    for scale, left_out in ((2.0**-4, True), (8.0, False)):
        for node, quantizer in network.modules_of(qann, Quantizer):
            if node.args[0] in clamps:
                quantizer.scale.data.fill_(scale if levels.count < 256 else scale / 64)
            else:
                quantizer.scale.data = torch.exp2(quantizer.scale.log2().round())
        snn = spike(to_integer(qann, weight_bits) if weight_bits else qann, Even(3 if weight_bits else 4))
        plan = plan_of(snn)
        assert bool(plan.clamps) is left_out
        assert not plan.clamps & set(plan.nodes)
        for x in (images, images * 10):
            assert_same(sweep(snn, (x,), 40, block=8, chunk=3), reference(snn, (x,), 40))


@pytest.mark.parametrize(
    ("low", "high", "theta", "left_out"),
    [
        (0.0, 3.5, 0.5, True),
        (0.0, 3.25, 0.5, True),  # 3.25 / 0.5 + 0.5 = 7
        (0.0, 3.2499998, 0.5, False),
        (0.249, 4.0, 0.5, True),
        (0.25, 4.0, 0.5, False),
        (None, 6.0, 0.5, True),
        (-1.0, None, 0.5, True),
        (6.0, 0.0, 0.5, False),
        (0.0, 21.0, 3.0, True),
    ],
)
def test_which_clamps_change_no_code(low, high, theta, left_out):
    """To the last bit; never where others read the clamp too."""

    class Alone(nn.Module):
        def forward(self, x):
            h = (x * 1.5).relu().clamp(low, high)
            return h * 2

    images = torch.linspace(-2, 5, 304).reshape(-1, 4)
    qann = quantize_everywhere(capture(Alone(), images[:2]), Levels(0, 7), images)
    for _, quantizer in network.modules_of(qann, Quantizer):
        quantizer.scale.data.fill_(theta)
    snn = spike(qann)
    (clamp,) = (n for n in snn.graph.graph.nodes if network.op_name(n) == "clamp")
    plan = plan_of(snn)
    assert (clamp in plan.clamps) is left_out
    assert not _changes_no_code(clamp, {})  # to whom no reader is a neuron
    assert_same(sweep(snn, (images,), 12), reference(snn, (images,), 12))
    clamp.update_arg(1, float("nan"))  # which makes NaN of all
    assert not _changes_no_code(clamp, plan.neurons)


@pytest.mark.parametrize("heads", [1, 3])
def test_a_softmax_goes_into_the_scan(scans, heads):
    """Along the last dimension alone; attention whose heads, and so channels, are one or several."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mixed, self.last = nn.Linear(12, 12), nn.Linear(12, 36), nn.Linear(12, 3)

        def forward(self, x):
            q, k, v = self.mixed(torch.relu(self.first(x))).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            found = (q @ k.mT * 2).softmax(-1) @ v
            across = (q * 2).softmax(2) * v
            return self.last((found + across).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, images = Attention().eval(), torch.randn(5, 7, 12)
    for levels in (Levels(0, 7), Levels(-2, 5)):
        qann = to_integer(quantize(morph(capture(model, images[:2])), levels, images))
        for encoding in (Pulse(), Even(3)):
            snn = spike(qann, encoding)
            assert [smooth.function for _, smooth in plan_of(snn).smooth.values()] == ["softmax"]
            assert_same(sweep(snn, (images,), 30, block=4, chunk=2), reference(snn, (images,), 30))


def test_joined_codes_reach_as_far_as_the_furthest():
    """Kernels are trusted up to a code; layers may have more levels than the first that they are joined to."""
    torch.manual_seed(0)
    both = nn.ModuleList(nn.Linear(6, 16) for _ in range(2))

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.mix, self.head = both, nn.Linear(32, 16), nn.Linear(16, 4)

        def forward(self, x):
            joined = torch.cat([torch.relu(layer(x)) for layer in self.both], 1)
            return self.head(torch.relu(self.mix(joined)))

    model, images = Joined(), torch.randn(4, 6) * 0.2
    both[1].bias.data.fill_(9.0)
    model.mix.bias.data.zero_()
    model.mix.weight.data.copy_(127 * 2.0**-11 * torch.where(torch.arange(16)[:, None] % 2 == 0, 1.0, -1.0))
    qann = quantize(morph(capture(model, images[:1])), 8, images)
    for (_, quantizer), levels, scale in zip(
        network.modules_of(qann, Quantizer), (8, 256, 256), (1 / 32, 1 / 32, 1 / 8), strict=True
    ):
        quantizer.levels = Levels(0, levels - 1)
        quantizer.scale.data.fill_(scale)
    snn = spike(to_integer(qann), slew=64)
    assert_same(sweep(snn, (images,), 14), reference(snn, (images,), 14))


class Fire(nn.Module):
    """Two layers joined, then the greatest in windows, the last of which reach past the image."""

    def __init__(self, act):
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.left, self.right, self.act = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 3, padding=1), act
        self.next, self.head = nn.Conv2d(24, 8, 3), nn.Linear(24, 4)

    def forward(self, x):
        a = self.act(self.stem(x))
        a = self.act(self.squeeze(torch.cat([a, self.act(0.3 * a)], 1)))
        joined = torch.cat([self.act(self.left(a)), self.act(self.right(a))], 1)
        b = self.act(self.next(torch.max_pool2d(joined, 3, 2, 0, 1, True)))
        c = self.act(self.next(joined))
        return self.head(torch.cat([b.amax((2, 3)), c.amax((2, 3)), 0.7 * b.amin((2, 3))], 1))


class Dense(nn.Module):
    """Each layer reads all before it; branches that pool, and are joined."""

    def __init__(self, act):
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 8, 3), act
        self.layers = nn.ModuleList(nn.Conv2d(8 * (i + 1), 8, 3, padding=1) for i in range(3))
        self.branches, self.head = nn.ModuleList(nn.Conv2d(32, 8, 1) for _ in range(3)), nn.Conv2d(24, 4, 4, 3)

    def forward(self, x):
        x = self.act(self.stem(x))
        for layer in self.layers:
            x = torch.cat([x, self.act(layer(x))], 1)
        pools = (lambda v: v, lambda v: torch.max_pool2d(v, 3, 1, 1), lambda v: torch.max_pool2d(v, 2, 1))
        y = [self.act(branch(pool(x))) for branch, pool in zip(self.branches, pools, strict=True)]
        y[2] = nn.functional.pad(y[2], (0, 1, 0, 1))
        return self.head(torch.cat(y, 1)).sum((2, 3))


class Added(nn.Module):
    """Sums of codes that layers read, whole and by groups; enlarged, joined with others, and the greatest of these."""

    def __init__(self, act):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.grouped, self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.Conv2d(16, 8, 2, 2)
        self.neck, self.head, self.act = nn.Conv2d(16, 8, 1), nn.Linear(8, 4), act

    def forward(self, x):
        x = self.act(self.stem(x))
        x = x + self.act(self.first(x))
        deep = self.act(self.deep(self.act(self.grouped(x))))
        deep = nn.functional.interpolate(deep + self.act(self.second(deep)), scale_factor=2)
        joined = torch.cat([deep, x], 1)
        y, z = (self.act(self.neck(v)).amax((2, 3)) for v in (joined, torch.max_pool2d(joined, 2, 1)))
        return self.head(y + z)


@functools.cache
def joining(net: type[nn.Module], levels: int | Levels) -> tuple[fx.GraphModule, Tensor]:
    """One of these as an integer QANN, and images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = net(torch.relu if levels == 6 else torch.tanh).eval(), 2 * torch.randn(3, 2, 12, 12)
    return to_integer(quantize_everywhere(morph(capture(model, images[:2])), levels, images)), images


@pytest.mark.parametrize("levels", [6, Levels(-3, 4)], ids=repr)
@pytest.mark.parametrize("net", [Fire, Dense, Added])
def test_layers_read_joined_and_added_codes_as_bytes(monkeypatch, scans, net, levels):
    """Each code in a unit of its own, and changing at steps of its own."""
    qann, images = joining(net, levels)
    ways: set[tuple[str, bool]] = set()
    apart: list[Apart] = []
    compute = blocks.Block._synapse

    def counting(self, node):
        found = compute(self, node)
        if node in self.plan.synapses:
            ways.add((node.name, found is not None))
            apart.extend([self.env[node.args[0]]] if isinstance(self.env[node.args[0]], Apart) else [])
        return found

    monkeypatch.setattr(blocks.Block, "_synapse", counting)
    for encoding, bias_encoding in ((Pulse(), Pulse()), (Even(3), Pulse()), (Even(3), Even(4))):
        snn = spike(qann, encoding, bias_encoding=bias_encoding)
        assert_same(sweep(snn, (images,), 30, block=6, chunk=2), reference(snn, (images,), 30))
    others = {name for name, taken in ways if not taken}
    # What is padded, the greatest of an image, and the greatest of sums are no bytes.
    assert len(others) <= {Fire: 0, Dense: 1, Added: 2}[net], others
    assert apart
    assert levels == 6 or any(not torch.equal(*(term.map for term in codes.terms[:2])) for codes in apart)


def test_joined_codes_whose_sums_are_not_proven_are_left_to_the_network():
    """float32 holds each code and the sums of each, but not always what these add up to."""
    one = torch.ones(4)
    synapse = Synapse(torch.full((4, 24), 9, dtype=torch.int8), one, None, torch.float32, None, 9 * 24)
    rows, map = torch.zeros((1, 12), dtype=torch.uint8), torch.zeros((1, 1), dtype=torch.int64)
    codes = Rows(rows, map, torch.float32, top=5)
    for scale, exact in ((0.75, True), (-3.0, True), (2.0**-20, False), (1 + 2.0**-20, False)):
        joined = Joined((codes, replace(codes, scale=scale)), torch.float32, 1, (0, 12))
        assert joined.is_exact
        assert (synapse.of_each(joined) is not None) is exact
    assert not Sum((codes, replace(codes, scale=2.0**-22)), torch.float32).is_exact
    assert not Joined((codes, replace(codes, scale=1 + 2.0**-23)), torch.float32, 1, (0, 12)).is_exact


class Normalised(nn.Module):
    """BatchNorm behind what is joined, read by neurons, by a layer, and twice; numbers of each channel along tokens."""

    def __init__(self, act):
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 12, 3), act
        self.norms = nn.ModuleList(nn.BatchNorm2d(20) for _ in range(2))
        self.mix, self.scale, self.shift = nn.Conv2d(20, 8, 3), *(nn.Parameter(torch.randn(8)) for _ in range(2))
        for norm in self.norms:
            for values in (norm.running_mean, norm.bias.data, norm.weight.data):
                nn.init.normal_(values)

    def forward(self, x):
        joined = torch.cat([self.first(x), self.act(self.second(x))], 1)
        normed = self.norms[0](joined)
        y = self.act(normed) + self.act(normed + self.norms[1](joined))
        tokens = self.mix(y).flatten(2).transpose(1, 2)
        return self.act(tokens * self.scale + self.shift).sum(1)


@pytest.mark.parametrize("levels", [6, Levels(-3, 4)], ids=repr)
def test_numbers_times_and_plus_one_of_each_channel(monkeypatch, scans, levels):
    """Read as they are by the neurons behind, where these alone read them, in one pass; and by anything else."""
    qann, images = joining(Normalised, levels)
    left, affine = [], blocks.Block._affine
    monkeypatch.setattr(blocks.Block, "_affine", lambda self, node: left.append(found := affine(self, node)) or found)
    snn = spike(qann, Even(4))
    assert_same(sweep(snn, (images,), 40, block=8, chunk=2), reference(snn, (images,), 40))
    found = {(v.channels, v.bias is None) for v in left if v is not None}
    assert found == {(1, True), (1, False), (2, True), (2, False)}, "along both dimensions, a product and a sum"


class Enlarged(nn.Module):
    """Codes joined along the height of images, then enlarged as one image."""

    def __init__(self, act):
        super().__init__()
        self.first, self.second, self.mix, self.act = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 8, 3), nn.Conv2d(8, 4, 3), act

    def forward(self, x):
        joined = torch.cat([self.act(self.first(x)), 0.3 * self.act(self.second(x))], 2)
        return self.mix(nn.functional.interpolate(joined, size=(9, 11))).sum((2, 3))


class Lines(nn.Module):
    """Images of no channels, whose greatest in windows torch finds as if they were the channels of one."""

    def __init__(self, act):
        super().__init__()
        self.first, self.second, self.mix, self.act = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(4, 4), act

    def forward(self, x):
        a, b = self.act(self.first(x.flatten(1, 2))), 0.3 * self.act(self.second(x.flatten(1, 2)))
        return self.mix(torch.max_pool2d(torch.cat([a, b], 1), 2)).sum(1) + self.mix(torch.max_pool2d(a, 2)).sum(1)


@pytest.mark.parametrize("net", [Enlarged, Lines])
def test_parts_of_an_image_are_not_taken_for_images(scans, net):
    qann, images = joining(net, 6)
    snn = spike(qann, Even(4))
    assert_same(sweep(snn, (images,), 30, block=6, chunk=3), reference(snn, (images,), 30))


@pytest.mark.parametrize("size", [7, 8, 9, 10])
def test_the_greatest_of_bytes_in_windows_is_torchs(size):
    codes = torch.randint(0, 255, (2, 3, size, size + 1), dtype=torch.uint8)
    for options in (([3], [2]), ([3, 2], [2, 3], [1, 0]), ([3], [1], [1]), ([2], [3], [1]), ([5], [4], [2])):
        padding = options[2] if len(options) > 2 else [0]
        for ceil_mode in (False, True):
            wanted = torch.max_pool2d(codes.float(), *options[:2], padding, 1, ceil_mode)
            assert torch.equal(max_pool2d(codes, *options[:2], padding, [1], ceil_mode).float(), wanted)


@pytest.mark.parametrize("count", [1, 2])
def test_a_network_made_for_inference_alone_runs(count):
    with threads(count), torch.inference_mode():
        images = torch.randn(4, 1, 12, 12)
        snn = spike(to_integer(quantize(morph(capture(Turned(), images[:2])), 6, images)))
        assert_same(sweep(snn, (images,), 30), reference(snn, (images,), 30))


class Fronts(nn.Module):
    """Everything that can come before a first neuron: sums, halves, parts, codes of no image, the input itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(3, 6), nn.Linear(6, 4)
        self.place = nn.Parameter(torch.randn(1, 6))

    def forward(self, x, y):
        left, right = (x * y).chunk(2, 1)
        a = torch.relu(x + y) + torch.relu(0.5 * x) + torch.relu(self.first(x))
        b = torch.relu(self.second(left)) + torch.relu(self.second(right)) + torch.relu(self.place)
        return self.head(torch.relu(a - b)) + x[:, :4]


@pytest.mark.parametrize(("encoding", "times"), [(Pulse(), 1), (Even(6), 2)], ids=repr)
@pytest.mark.parametrize("fronts", [False, True])
def test_what_depends_on_no_neuron_is_computed_once(monkeypatch, encoding, times, fronts):
    if fronts:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, sizes = Fronts(), torch.linspace(0, 3, 7).unsqueeze(1)
            images = (sizes * torch.randn(7, 6), sizes * torch.randn(7, 6))
        few = tuple(x[:2] for x in images)
        qann = to_integer(quantize(morph(capture(model.eval(), few)), 12, images))
    else:
        qann, one = convert("net")
        images = (one,)
    snn = spike(qann, encoding)
    computed: dict[str, int] = {}
    compute = blocks.Block._compute

    def counting(self, node):
        if node not in self.plan.dependent and node.op != "get_attr":
            computed[node.name] = computed.get(node.name, 0) + 1
        return compute(self, node)

    monkeypatch.setattr(blocks.Block, "_compute", counting)
    found, wanted = sweep(snn, images, 40, block=4, chunk=8), reference(snn, images, 40)
    assert_same(found, wanted)
    assert len(set(wanted.settled_at.tolist())) > 1, "images leave one by one"
    # In the block in which the input has arrived; parts that are several tensors again whenever an image has left.
    assert computed and (set(computed.values()) == {times} or fronts)
    assert_same(sweep(snn, images, 40, block=4, chunk=2, stop=False), reference(snn, images, 40, stop=False))


@pytest.mark.parametrize(
    ("images", "most", "at_once", "chunk"),
    [(8, 3, 1, 3), (8, 3, 2, 2), (8, 6, 2, 4), (7, 100, 2, 4), (33, 3, 16, 3), (1, 3, 2, 1), (0, 3, 2, 1)],
)
def test_all_that_run_at_once_have_as_many_images(images, most, at_once, chunk):
    assert _evenly(images, most, at_once) == chunk
