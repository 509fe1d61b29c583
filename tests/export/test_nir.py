"""A network in NIR spikes as the network does, here and in somebody else's hands; what NIR cannot hold is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spikezip
from spikezip.errors import InputError, OutputError, StageError
from spikezip.morph import Morph, Residual
from spikezip.spike import Constant, Even, Pulse

nir = pytest.importorskip("nir", reason="the extra 'nir' is not installed")

from spikezip.export import nir as nir_export  # noqa: E402
from spikezip.export.nir import compare, currents  # noqa: E402
from spikezip.export.nir_nodes import nirtorch_nodes  # noqa: E402
from spikezip.export.nir_play import play  # noqa: E402


class Blocks(nn.Module):
    """Convolutions with BatchNorm, residual blocks with and without a layer on the shortcut, pooling, a classifier."""

    def __init__(self, pool: nn.Module | None = None):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = pool or nn.AvgPool2d(2)
        self.down, self.shortcut = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.inner(x) + x)
        x = self.pool(x)
        x = F.relu(self.down(x) + self.shortcut(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PaddedShortcut(nn.Module):
    """ResNet's option A: every other place of the stream, and channels of zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(x.flatten(1))


class Windows(nn.Module):
    """Groups, dilation, a padded plane, a difference, a factor of each channel and one of all."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3)
        self.other = nn.Conv2d(6, 6, (1, 3))
        self.factor = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(x))
        x = F.relu((self.other(F.pad(x, (1, 1, 0, 0))) - self.factor * x) / -2)
        return self.head(x.mean((2, 3)))


class Line(nn.Module):
    """Along a line."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 6, 5, stride=2, padding=2), nn.Conv1d(6, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(1 - self.second(F.relu(-self.first(x)))).mean(2))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.left(left) + self.right(right))
        return self.head(x), self.head(x + x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def _drawn(*shape: int) -> Tensor:
    return torch.randn(12, *shape, generator=torch.Generator().manual_seed(3))


def _converted(model: nn.Module, *inputs: Tensor, **how: Any) -> spikezip.SNN:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    given = inputs if len(inputs) > 1 else inputs[0]
    example = tuple(x[:1] for x in inputs) if len(inputs) > 1 else inputs[0][:1]
    real = [inputs] if len(inputs) > 1 else given
    return spikezip.convert(model.eval(), example, real, **how)


PLANE = (3, 8, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], dict[str, Any]]] = {
    "linear layers": (mlp, [(6,)], {}),
    "blocks": (Blocks, [PLANE], {}),
    "blocks, RCR": (Blocks, [PLANE], {"morph": Morph(residual=Residual.RCR)}),
    "four levels from code 1": (Blocks, [PLANE], {"levels": 4, "initial_code": 1}),
    "each neuron from its mean code": (Blocks, [PLANE], {"initial_code": "mean"}),
    "answers longer than float32": (mlp, [(6,)], {"weight_bits": 16}),
    "an even input": (mlp, [(6,)], {"encoding": Even(4), "bias_encoding": Pulse()}),
    "option A": (PaddedShortcut, [PLANE], {}),
    "windows and factors": (Windows, [PLANE], {}),
    "along a line": (Line, [(2, 16)], {}),
    "several inputs and outputs": (TwoInputs, [(5,), (3,)], {}),
}


def _made(name: str) -> tuple[spikezip.SNN, list[Tensor]]:
    build, shapes, how = CASES[name]
    torch.manual_seed(0)
    inputs = [_drawn(*shape) for shape in shapes]
    return _converted(build(), *inputs, **how), inputs


@pytest.mark.parametrize("name", CASES)
def test_every_spike_and_every_answer_is_the_networks_after_a_file(tmp_path, name):
    snn, inputs = _made(name)
    nir.write(tmp_path / "net.nir", snn.to_nir())
    played = compare(snn, nir.read(tmp_path / "net.nir"), inputs)
    assert played.equal
    assert played.differing == 0
    assert played.spikes > 100
    assert played.steps >= 2


@pytest.mark.parametrize("name", ["blocks", "each neuron from its mean code", "along a line"])
def test_another_reader_computes_the_same(tmp_path, name):
    nirtorch = pytest.importorskip("nirtorch")
    snn, (images,) = _made(name)
    nir.write(tmp_path / "net.nir", snn.to_nir())
    graph = nir.read(tmp_path / "net.nir")
    network = nirtorch.nir_to_torch(graph, nirtorch_nodes(), dtype=torch.float64)
    run = snn.run(images, engine=spikezip.Engine.REFERENCE)
    (given,) = currents(snn, images, len(run.logits))
    state = None
    for now, wanted in zip(given, run.logits, strict=True):
        with torch.no_grad():
            answer, state = network(now, state)
        assert torch.equal(answer, wanted.double())


@pytest.mark.parametrize("part", ["above", "below", "room_up", "room_down"])
def test_a_wrong_threshold_is_noticed(part):
    snn, inputs = _made("four levels from code 1")
    graph = snn.to_nir()
    node = next(node for name, node in graph.nodes.items() if name.endswith(f"relu_{part}"))
    node.threshold += 1.0
    assert compare(snn, graph, inputs).differing > 0


def test_what_goes_in_is_what_the_rounded_input_grows_by():
    snn, (x,) = _made("an even input")
    (given,) = currents(snn, x, 6)
    assert given.shape == (6, *x.shape)
    assert given[4:].count_nonzero() == 0
    (grid,) = (value for name, value in snn.to_nir().metadata.items() if name.endswith("_steps_per_unit"))
    assert torch.equal((given.sum(0) * grid).round(), given.sum(0) * grid)
    assert (given.sum(0) - x).abs().max() <= 0.5 / grid + 1e-6
    with pytest.raises(InputError, match="takes 1 inputs, not 2"):
        currents(snn, [x, x], 6)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x))))


class Plane(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)).transpose(2, 3).flatten(1))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any], str]] = {
    "max-pooling": (lambda: Blocks(nn.MaxPool2d(2)), PLANE, {}, r"'pool' \(max_pool2d.*Pooling\.AVERAGE"),
    "floats": (mlp, (6,), {"weight_bits": None}, r"weights are floats.*exact=False"),
    "late biases": (mlp, (6,), {"encoding": Even(4)}, r"bias_encoding=Pulse\(\)"),
    "graded spikes": (mlp, (6,), {"slew": 2}, r"'1' \(STBIF\).*up to 2 levels a step"),
    "a function of sums": (Normed, (6,), {}, r"'norm' \(\w*layer_norm\w*\).*no sum of what reaches it"),
    "planes as answers": (Plane, PLANE, {}, r"'last' \(conv2d\).*of shape \[2, 8, 8\]"),
    "values moved about": (Turned, PLANE, {}, r"\(transpose\) cannot be written as NIR: NIR has no node for it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_hold_is_refused_by_name(name):
    build, shape, how, told = REFUSED[name]
    torch.manual_seed(0)
    snn = _converted(build(), _drawn(*shape), **how)
    with pytest.raises(StageError, match=told):
        snn.to_nir()


def test_rounded_sums_and_float_weights_are_written_if_asked_for(tmp_path):
    """Membrane shortcuts: streams get more digits with every block, until they are rounded."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
            self.inner = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(14))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            for first, second in zip(self.inner[::2], self.inner[1::2]):
                x = F.relu(second(F.relu(first(x))) + x)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    x = _drawn(3, 6, 6)
    deep = _converted(Deep(), x, morph=Morph(residual=Residual.MS))
    with pytest.raises(StageError, match=r"more digits than float64.*exact=False"):
        deep.to_nir()
    floats = _converted(mlp(), _drawn(6), weight_bits=None)
    averages = _converted(Blocks(), _drawn(*PLANE), weight_bits=None, initial_code="mean")
    for snn, inputs in ((deep, x), (floats, _drawn(6)), (averages, _drawn(*PLANE))):
        played = compare(snn, snn.to_nir(exact=False), inputs)
        assert played.spikes > 100
        assert played.differing <= played.spikes // 100
        assert played.far < 0.05


def test_a_constant_current_asks_for_the_length_of_the_run():
    snn = _converted(mlp(), _drawn(6), encoding=Constant(), bias_encoding=Pulse())
    with pytest.raises(InputError, match="Give steps"):
        compare(snn, snn.to_nir(), _drawn(6))
    assert compare(snn, snn.to_nir(), _drawn(6), steps=20).equal


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(OutputError, match=r"pip install 'spikezip\[nir\]'"):
        nir_export.needed()


# -- the player, on graphs of one's own --------------------------------------------------------------------------------


def _graph(nodes: dict[str, Any], *edges: tuple[str, str]) -> Any:
    ends = {"in": nir.Input({"input": np.array([1])}), "out": nir.Output({"output": np.array([1])})}
    return nir.NIRGraph({**ends, **nodes}, list(edges))


def _played(graph: Any, *values: float) -> list[float]:
    (found,) = play(graph, [torch.tensor(values).reshape(-1, 1, 1)])
    return found.flatten().tolist()


def test_what_comes_back_comes_a_step_later():
    """A counter that fires above 1 and loses 2 for it: 1; 2, fires; then 1 + 1 - 2 = 1 - ..."""
    nodes = {
        "v": nir.I(np.ones(1)),
        "fires": nir.Threshold(np.array([1.0])),
        "loss": nir.Scale(np.array([-2.0])),
    }
    graph = _graph(nodes, ("in", "v"), ("v", "fires"), ("fires", "loss"), ("loss", "v"), ("fires", "out"))
    # v: 1, 2, 3 - 2, 4 - 2 (this step's) - 0, ...
    assert _played(graph, 1, 1, 1, 1, 1) == [0, 1, 0, 1, 0]


def test_edges_into_one_node_add_up_and_an_integrator_sees_its_own_step():
    nodes = {"twice": nir.Scale(np.array([2.0])), "v": nir.I(np.array([0.5]))}
    graph = _graph(nodes, ("in", "twice"), ("in", "v"), ("twice", "v"), ("v", "out"))
    assert _played(graph, 2, 0, 4) == [3, 3, 9]


def test_the_player_refuses_what_it_does_not_know():
    leaky = nir.LIF(tau=np.ones(1), r=np.ones(1), v_leak=np.zeros(1), v_threshold=np.ones(1), v_reset=np.zeros(1))
    graph = _graph({"leaky": leaky}, ("in", "leaky"), ("leaky", "out"))
    with pytest.raises(InputError, match=r"No rule for NIR's LIF"):
        _played(graph, 1.0)
    with pytest.raises(InputError, match="has 1 inputs, and 0 are given"):
        play(_graph({}, ("in", "out")), [])
    loop = _graph(
        {"a": nir.Scale(np.ones(1)), "b": nir.Scale(np.ones(1))}, ("in", "a"), ("a", "b"), ("b", "a"), ("a", "out")
    )
    with pytest.raises(InputError, match="circle without an integrator"):
        _played(loop, 1.0)


def test_the_command_line_writes_plays_and_says(tmp_path, capsys):
    from typer.testing import CliRunner

    from spikezip.cli import app

    def spikezip_says(*words: Any) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    snn, _ = _made("blocks")
    bundle, out = snn.save(tmp_path / "net.spikezip"), tmp_path / "net.nir"
    done = spikezip_says("export", bundle, "--out", out)
    assert done.exit_code == 0, done.output
    assert "equal: 0 of" in done.output
    assert compare(snn, nir.read(out), _drawn(*PLANE)).equal
    again = spikezip_says("export", bundle, "--out", out)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    pooled = _converted(Blocks(nn.MaxPool2d(2)), _drawn(*PLANE)).save(tmp_path / "pooled.spikezip")
    refused = spikezip_says("export", pooled, "--out", tmp_path / "pooled.nir")
    assert refused.exit_code == 2
    assert "max_pool2d" in refused.output
    assert not Path(tmp_path / "pooled.nir").exists()
