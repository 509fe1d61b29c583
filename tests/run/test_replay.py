"""Blocks with a row for each step and image: the sweep's results, and nothing that a CUDA graph could not capture."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import spikezip
from random_networks import Drawn, networks, shuffle_statistics
from spikezip import Even, Pulse
from spikezip.kernels import copied_once, native, triton_scan, triton_synapse
from spikezip.models import resnet18
from spikezip.run import Engine, Margin, execute, replay, sweep
from spikezip.run.plan import plan_of

SCANNING = importlib.import_module("spikezip.kernels.scan")  # these packages have functions of the same names
REPLAY = importlib.import_module("spikezip.run.replay")


def same(found, wanted):
    assert found.engine == "replay"
    assert torch.equal(found.settled_at, wanted.settled_at)
    assert (found.exited_at is None) == (wanted.exited_at is None)
    if wanted.exited_at is not None:
        assert torch.equal(found.exited_at, wanted.exited_at)
    for ours, theirs in zip(found.outputs, wanted.outputs, strict=True):
        assert torch.equal(ours, theirs)
    for layer, counts in wanted.spikes.items():
        assert torch.equal(found.spikes[layer], counts)
        assert torch.equal(found.negative[layer], wanted.negative[layer])
        assert torch.equal(found.codes[layer], wanted.codes[layer])


@pytest.fixture(scope="module", params=[Pulse(), Even(3)], ids=["pulse", "even"])
def small(request):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip
    images = torch.randn(7, 1, 8, 8)
    encoding = {"encoding": request.param, "bias_encoding": request.param}
    return spikezip.convert(model, images[:2], images, levels=6, **encoding), images


@pytest.mark.parametrize("block", [1, 3, 16])
def test_it_gives_the_sweeps_results_whatever_its_blocks(small, block):
    snn, images = small
    for steps in (2, 5, 40):
        for options in ({}, {"stop": False}, {"early_exit": Margin(0.05)}):
            same(replay(snn, (images,), steps, block=block, **options), sweep(snn, (images,), steps, **options))


def test_it_goes_on_from_a_state(small):
    snn, images = small
    state = execute(snn, images, 4).state
    same(execute(snn, -images, engine=Engine.REPLAY, state=state), execute(snn, -images, state=state))


def test_observers_see_every_step_of_the_images_that_run(small):
    snn, images = small
    seen: dict[str, list] = {}
    for engine in (Engine.REPLAY, Engine.SWEEP):
        told = seen[engine.value] = []
        execute(snn, images, 9, engine=engine, observe=lambda *told_of, told=told: told.append(told_of))
    first, second = ({layer: codes for layer, t, _, codes in seen[name] if t == 1} for name in seen)
    assert first.keys() == second.keys()
    for layer, codes in first.items():
        steps = min(len(codes), len(second[layer]))
        assert torch.equal(codes[:steps], second[layer][:steps])


@settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=12)
@given(networks())
def test_random_networks(model):
    images = torch.randn(5, *Drawn.input_shape, generator=torch.Generator().manual_seed(0))
    snn = spikezip.convert(shuffle_statistics(model).eval(), images[:2], images, levels=6)
    same(execute(snn, images, engine=Engine.REPLAY), execute(snn, images))


def test_a_recording_is_used_again_and_leaves_earlier_results_alone(small):
    snn, images = small
    plan_of(snn).captured.clear()
    first = execute(snn, images, 6, engine=Engine.REPLAY)
    kept = first.logits.clone()
    recorded = list(plan_of(snn).captured.values())
    same(execute(snn, images.flip(0), 6, engine=Engine.REPLAY), execute(snn, images.flip(0), 6))
    assert list(plan_of(snn).captured.values()) == recorded
    assert torch.equal(first.logits, kept)
    for images_at_once in range(1, 8):
        for steps in (1, 2):
            execute(snn, images[:images_at_once], steps, engine=Engine.REPLAY)
    assert len(plan_of(snn).captured) == REPLAY._KEPT


def test_other_weights_are_recorded_anew():
    torch.manual_seed(0)
    images = torch.randn(4, 6)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    snn = spikezip.convert(model, images[:2], images)
    before = execute(snn, images, engine=Engine.REPLAY)
    with torch.no_grad():
        for weight in snn.graph.parameters():
            weight.neg_()
        for weight in snn.graph.buffers():
            if weight.dim() > 1:
                weight.neg_()
    after = execute(snn, images, engine=Engine.REPLAY)
    assert not torch.equal(before.logits, after.logits)
    same(after, execute(snn, images))


class Elsewhere(TorchDispatchMode):
    """Counts copies to where the network lies, and fails where anything there is read, or mixed with what is here.

    The place is torch's "meta": nothing there has contents, so that a shape which depends on any is an error.
    """

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here, there = ([t for t in tensors if t.is_meta is meta] for meta in (False, True))
        where = (kwargs or {}).get("device")
        if function is torch.ops.aten._to_copy.default and where is not None:
            assert here or where.type == "meta", "read from the GPU"
            self.copies += bool(here) and where.type == "meta"
        else:
            assert not (here and there), f"{function}: the CPU's numbers among the GPU's"
        return function(*args, **(kwargs or {}))


class Attention(nn.Module):
    """A token for each line of an image, and the mean of them all."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x[:, 0])).mean(1))


@pytest.mark.parametrize("encoding", [Pulse(), Even(3)], ids=["pulse", "even"])
@pytest.mark.parametrize("model", ["convolutions", "attention"])
def test_a_graph_could_capture_it(model, encoding, monkeypatch):
    """Once it has run, a block makes no more copies to the GPU, and reads nothing there."""
    torch.manual_seed(0)
    images = torch.randn(2, 1, 16, 16) if model == "attention" else torch.randn(2, 3, 32, 32)
    network = Attention() if model == "attention" else shuffle_statistics(resnet18(width=16))
    snn = spikezip.convert(network.eval(), images, images, levels=6, encoding=encoding, bias_encoding=encoding)
    plan, scanned, summed = plan_of(snn), [], []
    fake = SimpleNamespace(cdiv=lambda a, b: -(-a // b), next_power_of_2=lambda n: 1 << (n - 1).bit_length())
    for module, launched in ((triton_scan, scanned), (triton_synapse, summed)):
        monkeypatch.setattr(module, "triton", fake)
        monkeypatch.setattr(module, "_run", _Kernel(launched), raising=False)
    monkeypatch.setattr(triton_scan, "tl", SimpleNamespace(float32=None, float64=None), raising=False)
    monkeypatch.setattr(triton_synapse, "suits", triton_synapse.fits)
    monkeypatch.setattr(native, "suits", lambda *_: False)
    monkeypatch.setattr(SCANNING, "_fused", lambda terms, start, every: partial(triton_scan.scan, every=every))

    def there(values):
        return values.to("meta") if isinstance(values, torch.Tensor) else values

    synapses = {
        node: replace(s, weight=there(s.weight), scale=there(s.scale), bias=there(s.bias), packed={}, exact={})
        for node, s in plan.synapses.items()
    }
    constants = {node: there(values) for node, values in plan.constants.items()}
    columns = {node: (there(values), dim) for node, (values, dim) in plan.columns.items()}
    moved = replace(plan, synapses=synapses, constants=constants, columns=columns, captured={})
    shares = [encoding.share(t, 8) for t in range(1, 9)]
    block = REPLAY._Captured(moved, snn, (there(images),), {}, (shares, shares), True)
    kept: dict = {}
    copies = []
    for _ in range(2):
        with torch.no_grad(), copied_once(kept), Elsewhere() as watched:
            found = block._compute()
        copies.append(watched.copies)
    assert copies[0] > 0
    assert copies[1] == 0
    assert len(scanned) == 2 * len(snn.layers)
    assert len(summed) >= 2 * (len(synapses) - 1)  # the classifier may read averages
    assert found.counts.is_meta
    assert found.outputs[0].shape == (8, 2, 10)


class _Kernel:
    """In place of a Triton kernel: notes that it was launched."""

    def __init__(self, launched: list):
        self.launched = launched

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launched.append(grid)
