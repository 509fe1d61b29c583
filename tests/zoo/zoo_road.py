"""The whole road for one network, every claim on the way checked; the result is plain data."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from spikezip.errors import SpikezipError
from spikezip.graph import InputSpec, Stage, capture, network, shapes
from spikezip.measure import verify
from spikezip.morph import Morph, morph
from spikezip.quantize import Quantizer, quantize, to_integer
from spikezip.run import Engine, Run, execute
from spikezip.run.engine import qann_outputs
from spikezip.run.plan import unfoldable
from spikezip.spike import SpikingNetwork, spike


@dataclass(frozen=True)
class Journey:
    """What became of one network.

    Attributes:
        parameters: of the model.
        layers: neuron layers of its SNN.
        neurons: per image.
        capture_error: greatest relative difference of the captured network's outputs from the model's; in float64 where
            they are not the same to the bit in float32.
        morph_error: the same for the morphed network's from the captured one's, in float64.
        t_eq: greatest settling step of the integer SNN on the images.
        bound: the static bound.
        float_mismatches: codes of the float SNN that differ from its QANN's (reference engine).
        integer_mismatches: the same for the integer SNN (its fast engine).
        rounding: how far an integer network of 16-bit weights lies from the float QANN, each layer given the float
            QANN's codes: the greatest of the shares of codes that differ (ties) and the outputs' relative distance.
        engine: the fast one that it runs on: the sweep, or where time steps cannot be folded into the batch, events.
        engines_equal: that and the reference give the same outputs, spikes and codes at every step.
        outputs_equal: all settled outputs are the QANN's to the bit, float and integer.
        spikes: of the integer SNN, per image.
        silent_layers: neuron layers that never fire on these images.
        exactness: how many operations add up in float32, in float64, rounded, inexact.
        inexact: names of the inexact ones.
        seconds: for everything.
    """

    parameters: int
    layers: int
    neurons: int
    capture_error: float
    morph_error: float
    t_eq: int
    bound: int
    float_mismatches: int
    integer_mismatches: int
    rounding: float
    engine: str
    engines_equal: bool
    outputs_equal: bool
    spikes: float
    silent_layers: int
    exactness: dict[str, int]
    inexact: list[str]
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether every claim held."""
        return (
            max(self.capture_error, self.morph_error) <= 1e-9
            and self.float_mismatches == self.integer_mismatches == 0
            and self.rounding < 0.02
            and self.engines_equal
            and self.outputs_equal
            and 0 < self.t_eq <= self.bound
        )


def travel(
    model: nn.Module,
    images: Tensor | tuple[Tensor, ...],
    levels: int = 8,
    choice: Morph = Morph(),
) -> Journey:
    """Capture, morph, quantize, spike and run a model on its images; raises what the road raises."""
    start = time.perf_counter()
    inputs = (images,) if isinstance(images, Tensor) else images
    ann = capture(model, inputs)
    morphed = morph(ann, choice)
    capture_error, morph_error = _kept(model, ann, inputs)
    qann = quantize(morphed, levels, [inputs])
    floats, integers = spike(qann), spike(to_integer(qann))
    with torch.no_grad():
        proof = verify(floats, inputs, engine=Engine.REFERENCE)
        fast = Engine.SWEEP if unfoldable(integers.graph) is None else Engine.EVENT
        whole = verify(integers, inputs, engine=fast)
        reference = execute(integers, inputs, engine=Engine.REFERENCE)
        other = execute(integers, inputs, engine=fast)
    exactness = network.note(integers.graph, "exactness", ())
    return Journey(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=len(integers.layers),
        neurons=sum(network.spec(n).numel for n, _ in network.modules_of(integers.graph, type(integers.layers[0][1]))),
        capture_error=capture_error,
        morph_error=morph_error,
        t_eq=int(whole_time(other)),
        bound=whole.bound,
        float_mismatches=proof.mismatches,
        integer_mismatches=whole.mismatches,
        rounding=_distance(qann, to_integer(qann, 16, input_bits=16), inputs),
        engine=fast.value,
        engines_equal=same_run(reference, other),
        outputs_equal=proof.outputs_equal and whole.outputs_equal and _settled_outputs(integers, reference, inputs),
        spikes=float(reference.total_spikes.sum(0).double().mean()),
        silent_layers=sum(int(s.sum()) == 0 for s in reference.spikes.values()),
        exactness=dict(Counter(e.arithmetic for e in exactness)),
        inexact=[f"{e.name} ({e.op})" for e in exactness if e.arithmetic == "inexact"],
        seconds=round(time.perf_counter() - start, 1),
    )


def attempt(model: nn.Module, images: Tensor | tuple[Tensor, ...]) -> dict[str, Any]:
    """The journey as plain data, or the refusal in the road's own words."""
    try:
        return {**asdict(journey := travel(model, images)), "sound": journey.sound}
    except SpikezipError as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def whole_time(run: Run) -> int:
    """The last image's settling step; -1 if one has not settled."""
    return -1 if bool((run.settled_at < 0).any()) else int(run.settled_at.max())


def same_run(a: Run, b: Run) -> bool:
    """Whether two runs agree in everything they report, to the bit (a shorter one holds its last values)."""
    steps = min(a.steps, b.steps)
    return (
        torch.equal(a.settled_at, b.settled_at)
        and all(torch.equal(x[:steps], y[:steps]) for x, y in zip(a.outputs, b.outputs, strict=True))
        and a.codes.keys() == b.codes.keys()
        and all(torch.equal(a.codes[k].flatten(1), b.codes[k].flatten(1).to(a.codes[k].dtype)) for k in a.codes)
        and all(torch.equal(a.spikes[k][:steps], b.spikes[k][:steps]) for k in a.spikes)
        and all(torch.equal(a.negative[k][:steps], b.negative[k][:steps]) for k in a.negative)
    )


def _settled_outputs(snn: SpikingNetwork, run: Run, inputs: tuple[Tensor, ...]) -> bool:
    found = qann_outputs(snn, inputs)
    return all(torch.equal(mine[-1], theirs) for mine, theirs in zip(run.outputs, found, strict=True))


@torch.no_grad()
def _kept(model: nn.Module, ann: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Relative differences: captured from the model, and morphed from captured, in float64.

    Some models have numbers in float32 whatever they are given, so that float64 says less of them than float32.
    """
    same = _apart(_flat(ann(*inputs)), _flat(copy.deepcopy(model).eval()(*inputs))) == 0
    wide = network.fork(ann).double()
    doubles = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    network.mark(wide, Stage.ANN, [InputSpec.of(x) for x in doubles])
    for node in wide.graph.nodes:  # zeros and casts that say float32
        node.args, node.kwargs = tree_map(_doubled, node.args), tree_map(_doubled, node.kwargs)
    wide.recompile()
    shapes.annotate(wide)
    before, after = _flat(wide(*doubles)), _flat(morph(wide)(*doubles))
    truth = before if same else _flat(copy.deepcopy(model).eval().double()(*doubles))
    return _apart(before, truth), _apart(after, before)


@torch.no_grad()
def _distance(qann: fx.GraphModule, integer: fx.GraphModule, inputs: tuple[Tensor, ...]) -> float:
    teacher = _Codes(qann, {})
    wanted = _flat(teacher.run(*inputs))
    pupil = _Codes(integer, teacher.codes)
    found = _flat(pupil.run(*inputs))
    apart = [float((x - y).double().norm() / y.double().norm().clamp(min=1e-30)) for x, y in zip(found, wanted)]
    return max(apart + pupil.differ)


class _Codes(fx.Interpreter):
    """Runs a QANN; with ``given`` codes, each layer hands those on and its own are compared with them."""

    extra_traceback = False

    def __init__(self, qann: fx.GraphModule, given: dict[str, Tensor]):
        super().__init__(qann)
        self.given, self.codes, self.differ = given, {}, []

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module" or not isinstance(quantizer := self.fetch_attr(str(n.target)), Quantizer):
            return super().run_node(n)
        name = str(n.target)
        own = quantizer.codes(self.fetch_args_kwargs_from_env(n)[0][0])
        self.codes[name] = own
        given = self.given.get(name, own)
        self.differ.append(float((own != given).double().mean()))
        return given * quantizer.scale


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _flat(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))
        for a, b in zip(found, wanted, strict=True)
    )
