"""What is counted: the names of operations and memory accesses, and the work of one layer in each of three networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: What each count means; an energy model puts a price on any of them.
OPERATIONS: dict[str, str] = {
    "ac": "accumulate: one spike through one synapse (a graded spike of k levels is k of them)",
    "mac": "multiply-accumulate",
    "mac_nonzero": "those MACs of the QANN whose activation is not 0 (for hardware that skips zeros; of a matrix "
    "product, the factor with more zeros)",
    "add": "other additions: biases, input re-added at each step of the release, membranes reset, averages",
    "mul": "other multiplications: scaling, requantization, normalisation",
    "compare": "comparisons of membranes with thresholds, of a max-pool, of clipping",
    "update": "neurons updated, in each step they are (priced by chips that publish one figure for it)",
    "tracer_compare": "comparisons of a tracer with its limits",
    "tracer_add": "changes of a tracer",
    "address_add": "additions to find the address of a weight and a membrane",
    "address_mul": "multiplications to find the first address a spike of a convolution reaches",
    "weight_read": "weights read",
    "bias_read": "biases read",
    "membrane_read": "membranes (or accumulators) read",
    "membrane_write": "membranes (or accumulators) written",
    "tracer_read": "tracers read",
    "tracer_write": "tracers written",
    "spike_write": "spikes written to a queue by the neuron that fired",
    "spike_read": "spikes read from a queue, once by each operation they reach",
    "activation_read": "activations read",
    "activation_write": "activations written",
}

#: The memories that accesses go to; ``weight_read`` goes to ``weight``.
MEMORIES = ("weight", "bias", "membrane", "tracer", "spike", "activation")

FLOAT_BITS = 32  #: weights that are no integers
MEMBRANE_BITS = 32  #: membranes and accumulators
EVENTS_QUEUED = 1000  #: events a queue of spikes holds (Lemaire et al., 2022)


@dataclass(frozen=True)
class Memory:
    """A memory of ``values`` words of ``bits`` bits."""

    values: int
    bits: int

    @property
    def bytes(self) -> float:
        """Its size."""
        return self.values * self.bits / 8


@dataclass
class Work:
    """What one layer of one network does for one image.

    Attributes:
        operations: counts by the names of :data:`OPERATIONS`, as a mean over images: ``[T]`` (in each step) for an
            SNN, 0-dim for a network without time.
        memories: size of each of :data:`MEMORIES` it uses.
    """

    operations: dict[str, Tensor] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)

    def add(self, **counts: Tensor | float) -> None:
        """Add to counts."""
        for name, count in counts.items():
            value = torch.as_tensor(count, dtype=torch.float64)
            self.operations[name] = self.operations[name] + value if name in self.operations else value.clone()

    def at(self, step: int, steps: int, **counts: float) -> None:
        """Add to counts of one step (from 1) of a run."""
        for name, count in counts.items():
            row = self.operations.setdefault(name, torch.zeros(steps, dtype=torch.float64))
            row[step - 1] += count

    def store(self, name: str, values: int, bits: int) -> None:
        """Say how large a memory is; of several, the largest."""
        new, old = Memory(values, bits), self.memories.get(name)
        self.memories[name] = new if old is None or new.bytes > old.bytes else old

    def total(self, name: str) -> float:
        """One count, over all steps."""
        return float(self.operations[name].sum()) if name in self.operations else 0.0


@dataclass(frozen=True)
class Row:
    """One operation or neuron layer: its work in the SNN, in the QANN, and in the ANN.

    Attributes:
        name: the author's name of the operation.
        kind: the operation.
        input: what reaches it (see :class:`spikezip.measure.streams.Operand`).
        snn: its work in the SNN, per step.
        qann: in the bit-matched integer QANN.
        ann: in the ANN.
        as_macs: MACs if each step's operand were read as one integer per position instead of as streams; ``[T]``.
    """

    name: str
    kind: str
    input: str
    snn: Work
    qann: Work
    ann: Work
    as_macs: Tensor


@dataclass(frozen=True)
class Counts:
    """Everything that was counted in a run, per image (a mean), by layer and step.

    Attributes:
        images: how many images were run.
        steps: how many steps.
        settled: whether every image settled within them.
        rows: one :class:`Row` per operation or neuron layer.
        spikes: spikes of each step, all layers, ``[T]``.
        uncounted: what was not counted, by the name of the node; none of it is in any number.
    """

    images: int
    steps: int
    settled: bool
    rows: tuple[Row, ...]
    spikes: Tensor
    uncounted: tuple[str, ...]

    def snn(self, name: str) -> Tensor:
        """One count of the SNN in each step, over all layers, ``[T]``."""
        zero = torch.zeros(self.steps, dtype=torch.float64, device="cpu")
        return sum((row.snn.operations[name] for row in self.rows if name in row.snn.operations), zero)

    def qann(self, name: str) -> float:
        """One count of the QANN, over all layers."""
        return sum(row.qann.total(name) for row in self.rows)

    @property
    def synops(self) -> Tensor:
        """Synaptic operations up to each step: accumulates and multiply-accumulates, ``[T]``."""
        return (self.snn("ac") + self.snn("mac")).cumsum(0)

    def by_name(self) -> Mapping[str, float]:
        """Every count of the SNN, over all layers and steps."""
        return {name: float(self.snn(name).sum()) for name in OPERATIONS}
