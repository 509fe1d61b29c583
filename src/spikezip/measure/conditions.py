"""C1 to C6 of the equivalence theorem, each looked up in one very network."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from spikezip.errors import CaptureError
from spikezip.graph import network, purity
from spikezip.graph.modes import default_device
from spikezip.quantize.exact import Exactness, first_rounded
from spikezip.quantize.quantizer import Quantizer
from spikezip.run import Engine
from spikezip.run.plan import unfoldable
from spikezip.spike.encoding import Encoding
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


@dataclass(frozen=True)
class Condition:
    """One condition of the equivalence theorem, checked on this network.

    Attributes:
        id: C1 to C6.
        text: what must hold.
        holds: whether it does.
        evidence: what was looked at.
    """

    id: str
    text: str
    holds: bool
    evidence: str


@default_device()
def conditions(snn: SpikingNetwork, engine: Engine | None = None, steps: int | None = None) -> tuple[Condition, ...]:
    """C1 to C6 of the theorem, each looked up in this very network, run by ``engine`` (by default, its own) for
    ``steps`` steps (by default, until every image has settled)."""
    snn.graph.graph.lint()  # raises where a node reads what comes later, on which the rest would stumble
    return (_staircases(snn), _pure(snn), _complete(snn, steps), _acyclic(snn), _neurons(snn), _arithmetic(snn, engine))


def default_engine(snn: SpikingNetwork) -> Engine:
    """SWEEP where arithmetic is exact and time steps can be folded into the batch; elsewhere REFERENCE, which runs the
    QANN's own operations on its own batches."""
    exact = bool(network.note(snn.graph, "weight_bits")) and not _off_the_grid(snn)
    return Engine.SWEEP if exact and unfoldable(snn.graph) is None else Engine.REFERENCE


def exactness(snn: SpikingNetwork) -> list[dict[str, Any]]:
    """In which arithmetic each operation of an integer network adds up; ``bits`` is None for sums on no grid."""
    entries = [asdict(entry) for entry in _entries(snn)]
    return [{**entry, "bits": entry["bits"] if math.isfinite(entry["bits"]) else None} for entry in entries]


def start_text(snn: SpikingNetwork) -> str:
    """Where tracers start, in words."""
    code = snn.initial_code
    return str(code) if isinstance(code, int) else "codes of their own"


def _entries(snn: SpikingNetwork) -> tuple[Exactness, ...]:
    return network.note(snn.graph, "exactness", ())


def _off_the_grid(snn: SpikingNetwork) -> list[str]:
    """Names of the operations whose sums lie on no grid."""
    return [entry.name for entry in _entries(snn) if entry.arithmetic == "inexact"]


def _staircases(snn: SpikingNetwork) -> Condition:
    holds = all(
        0 < float(n.threshold) < math.inf
        and n.levels.lowest <= 0 <= n.levels.highest
        and float(n.target(torch.zeros(()))) == 0
        and n.levels.lowest <= n.starts[0] <= n.starts[1] <= n.levels.highest
        for _, n in snn.layers
    )
    text = "every quantizer is a staircase with lowest <= Q(0) = 0 <= highest, and tracers start on it"
    return Condition("C1", text, holds, f"{len(snn.layers)} neuron layers; tracers start at {start_text(snn)}")


def _pure(snn: SpikingNetwork) -> Condition:
    text = "everything else is a function of the accumulated signal"
    try:
        purity.refuse_impure(snn.graph)
    except CaptureError as error:
        return Condition("C2", text, False, str(error))
    return Condition(
        "C2", text, True, "every operation is deterministic and without side effects (by its schema and tags)"
    )


def _complete(snn: SpikingNetwork, steps: int | None) -> Condition:
    most = max(steps or 1, snn.t_off(1) + snn.bound + 1)  # looked at beyond the run too
    holds = _is_delivered(snn.encoding, most) and _is_delivered(snn.bias_encoding, most)
    steps = steps or most
    found = f"complete from step {snn.t_off(steps)} on, of {steps}"
    text = "input and bias are delivered exactly once, by a finite T_off"
    return Condition("C3", text, holds, f"input {snn.encoding}, bias {snn.bias_encoding}: {found}")


def _is_delivered(encoding: Encoding, steps: int) -> bool:
    """Whether a signal is there in full from ``t_off`` on, to the end of the run, and not all along before."""
    late = encoding.t_off(steps) - 1
    shares = [encoding.share(t, steps) for t in range(1, max(steps, late + 1) + 1)]
    return all(s == 1.0 for s in shares[late:]) and (late == 0 or any(s < 1.0 for s in shares[:late]))


def _acyclic(snn: SpikingNetwork) -> Condition:
    return Condition("C4", "the graph is acyclic", True, f"{len(snn.graph.graph.nodes)} nodes in topological order")


def _neurons(snn: SpikingNetwork) -> Condition:
    quantizers = network.modules_of(snn.qann, Quantizer)
    odd = [f"{name} is of {type(n).__name__}" for name, n in snn.layers if type(n) is not STBIF]
    holds = not odd and all(
        n.slew >= 1 and q.levels == n.levels for (_, n), (_, q) in zip(snn.layers, quantizers, strict=True)
    )
    text = "both spike signs, the tracer's limits are the quantizer's, no leak"
    evidence = f"not ST-BIF as it is: {', '.join(odd[:5])}" if odd else f"ST-BIF, slew {snn.slew}"
    return Condition("C5", text, holds, evidence)


def _arithmetic(snn: SpikingNetwork, engine: Engine | None) -> Condition:
    text = "the same tie rule (floor(u + 1/2)) and exact, or same-kernel, arithmetic"
    bits = network.note(snn.graph, "weight_bits")
    if not bits:
        if (engine or default_engine(snn)) is Engine.REFERENCE:
            evidence = "floating point: the reference engine runs the QANN's own operations on the QANN's own batches"
            return Condition("C6", text, True, evidence)
        evidence = "floating point: this engine adds up in another order than the QANN, and may round differently"
        return Condition("C6", text, False, evidence)
    entries, inexact = _entries(snn), _off_the_grid(snn)
    wide = sum(e.arithmetic == "float64" for e in entries)
    most = max((e.bits for e in entries if math.isfinite(e.bits)), default=0)
    evidence = f"integer weights ({bits} bits): sums need at most {most:.1f} bits; {wide} of {len(entries)} in float64"
    if inexact:
        evidence += f"; off the grid: {', '.join(inexact[:5])} (same kernels, same batches)"
    rounded = first_rounded(snn.qann, known=inexact)
    if rounded is not None:
        evidence = f"{network.describe(rounded)} no longer adds up exactly: weights were changed after to_integer()"
    return Condition("C6", text, rounded is None, evidence)
