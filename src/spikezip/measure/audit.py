"""The audit: what each synaptic operation of an SNN really receives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from spikezip.graph.modes import building
from spikezip.measure.counts import count
from spikezip.measure.layers import Layer, layers_of
from spikezip.measure.streams import Carries, Reader
from spikezip.measure.work import Counts
from spikezip.spike.swap import SpikingNetwork, expect_snn

#: What an operation may receive; ``streams:k`` is written for every k, ``a x b`` for the two factors of a product.
MEANING = {
    "analog input": "the network's own input: multiplied once",
    "ternary": "spikes -1, 0, +1: each is one accumulate a synapse",
    "streams:k": "the sum of k ternary streams: by linearity each spike of each is one accumulate a synapse",
    "fractional": "an average of spikes: folded into the weights, each spike before it is one accumulate a synapse",
    "fixed point": "a sum of spikes rounded to fixed point, or an average that no weights absorb: multiply-accumulates",
    "graded": "several levels at once (a slew above 1, or a maximum of sums)",
    "product": "the product of two streams: multiply-accumulates where it changes",
    "analog": "a general function of spikes that no neuron has turned into spikes (LayerNorm, softmax, ...)",
    "a x b": "two streams to be multiplied (attention, squeeze-excitation): multiply-accumulates by the product rule",
    "uncounted": "spikes, or sums of them, of which it makes what no rule counts (FFT, sorting, ...)",
    "none": "nothing that depends on the input",
}


def spikes_alone(kind: str) -> bool:
    """Whether an ``input`` of a row (see :data:`MEANING`) says that spikes are all it receives."""
    if " x " in kind:
        return False
    return kind in ("ternary", "fractional", "none") or kind.startswith("streams:")


@dataclass(frozen=True)
class AuditRow:
    """One synaptic operation, or product, or function that no rule counts.

    Attributes:
        name: the author's name of the operation.
        op: what it is.
        input: what it receives, see :data:`MEANING`.
        streams: the neuron layers (or other sources) that comes from.
        synapses: synapses per image: the MACs of a network without time, borders exact.
        acs: accumulates per image, each stream read by itself; None without images.
        macs: multiply-accumulates per image; None without images.
        as_macs: MACs per image if, in each step, what it receives were read as one integer per position instead of as
            streams; None without images.
    """

    name: str
    op: str
    input: str
    streams: tuple[str, ...]
    synapses: int
    acs: float | None = None
    macs: float | None = None
    as_macs: float | None = None

    @property
    def spike_driven(self) -> bool:
        """Whether spikes are all it receives, so that nothing has to be multiplied."""
        return spikes_alone(self.input)


@dataclass(frozen=True)
class Audit:
    """Every synaptic operation with what it receives; ``str()`` is a table.

    Attributes:
        rows: one :class:`AuditRow` each, in order of execution.
        images: how many images the counts are a mean over; 0 without counts.
        steps: of their run.
        uncounted: what was left out of the counts.
    """

    rows: tuple[AuditRow, ...]
    images: int = 0
    steps: int = 0
    uncounted: tuple[str, ...] = ()

    @property
    def spike_driven(self) -> bool:
        """Whether every operation but those on the analog input receives spikes alone."""
        return all(row.spike_driven or row.input == Carries.INPUT.value for row in self.rows)

    @property
    def exceptions(self) -> tuple[AuditRow, ...]:
        """The operations that receive something else than spikes or the analog input."""
        return tuple(row for row in self.rows if not row.spike_driven and row.input != Carries.INPUT.value)

    def to_json(self) -> dict[str, Any]:
        """The audit as plain data."""
        return {
            "format": "spikezip.audit/1",
            "spike_driven": self.spike_driven,
            "images": self.images,
            "steps": self.steps,
            "rows": [asdict(row) for row in self.rows],
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        counted = self.images > 0
        head = ["operation", "op", "receives", "from", "synapses"] + ["ACs", "MACs", "MACs as integers"] * counted
        lines = [head]
        for row in self.rows:
            sources = ", ".join(row.streams[:3]) + (f" and {len(row.streams) - 3} more" if len(row.streams) > 3 else "")
            numbers = [row.acs, row.macs, row.as_macs] if counted else []
            lines.append([row.name, row.op, row.input, sources, f"{row.synapses:,}", *(_whole(n) for n in numbers)])
        if counted:
            totals = [
                _whole(sum(getattr(row, field) or 0 for row in self.rows)) for field in ("acs", "macs", "as_macs")
            ]
            lines.append(["all", "", "", "", f"{sum(row.synapses for row in self.rows):,}", *totals])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(_padded(line, widths)).rstrip() for line in lines]
        return "\n".join([*table, "", self._verdict()])

    __repr__ = __str__  # a notebook shows it so

    def _verdict(self) -> str:
        said = f"Counts are per image, over {self.steps} steps, a mean of {self.images} images. " if self.images else ""
        others = sorted({row.name for row in self.exceptions})
        if not others:
            return f"{said}Every synaptic operation but those on the analog input receives spikes alone."
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        return f"{said}Not spikes alone: {', '.join(others[:5])}{more}."


@building()
def audit(
    snn: SpikingNetwork,
    images: Tensor | Sequence[Tensor] | None = None,
    steps: int | None = None,
    *,
    limit: int = 64,
) -> Audit:
    """List each synaptic operation (convolution, linear layer, product) with what it receives.

    A function of spikes that no rule counts may be any of these: it is listed too, and is not spike-driven.

    Args:
        snn: the network.
        images: if given, inputs ``[N, ...]`` on which operations are counted: accumulates as the streams are, and the
            multiply-accumulates it would take to read the operands as integers instead.
        steps: steps of that run; None until every image has settled.
        limit: only this many images are run.

    Returns:
        The :class:`Audit`.

    Raises:
        InputError: the images do not fit the network.
        StageError: it is no SNN.

    >>> import spikezip, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> snn = spikezip.convert(model, torch.rand(1, 4), torch.rand(16, 4))
    >>> print(audit(snn))
    operation  op      receives      from          synapses
    0          linear  analog input  input_1_grid        32
    2          linear  ternary       1                   24
    <BLANKLINE>
    Every synaptic operation but those on the analog input receives spikes alone.
    """
    expect_snn(snn)
    if images is None:
        return Audit(tuple(_row(layer) for layer in layers_of(snn)[0] if _is_audited(layer)))
    return audit_of(snn, count(snn, images, steps, limit=limit))


def audit_of(snn: SpikingNetwork, counts: Counts) -> Audit:
    """The audit of a network whose operations :func:`~spikezip.measure.count` has counted already."""
    rows = []
    # The rows of a count are the layers, in their order.
    for layer, counted in zip(layers_of(snn)[0], counts.rows, strict=True):
        if _is_audited(layer):
            done = {"acs": counted.snn.total("ac"), "macs": counted.snn.total("mac")}
            rows.append(replace(_row(layer), **done, as_macs=float(counted.as_macs.sum())))
    return Audit(tuple(rows), counts.images, counts.steps, counts.uncounted)


def _is_audited(layer: Layer) -> bool:
    return layer.role in (Reader.SYNAPSES, Reader.PRODUCT) or layer.unknown


def _row(layer: Layer) -> AuditRow:
    names = dict.fromkeys(stream.name for operand in layer.operands for stream in operand.streams)
    if layer.unknown:
        return AuditRow(layer.name, layer.kind, "uncounted", tuple(names), 0)
    kinds = " x ".join(operand.kind for operand in layer.operands) or "none"
    synapses = int(layer.operands[0].fanout.sum()) if layer.operands else 0
    return AuditRow(layer.name, layer.kind, kinds, tuple(names), synapses)


def _padded(line: list[str], widths: list[int]) -> list[str]:
    return [c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]


def _whole(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"
