"""Other spiking neurons, for comparison with ST-BIF: none of them is converted to, and none is certified.

A neuron here is a rule for what it sends, given its membrane (this step's current included) and all it has sent::

    v <- decay * v + i          v_0 = theta/2, n_0 = 0
    o = fire(v, n, ...)         in units of theta
    v <- v - theta * o,   n <- n + o

ST-BIF is one of these rules, and the only one under which ``n`` ends at the QANN's code whatever came in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from spikezip.errors import StageError
from spikezip.levels import Levels
from spikezip.spike.neuron import spikes_of

_NEVER = 1 << 30


@dataclass(frozen=True)
class When:
    """The time as one layer sees it.

    Attributes:
        t: the step, from 1.
        t_off: the step at which the input is complete.
        depth: neuron layers before this one, on the longest path.
        bits: of the greatest code of any layer.
    """

    t: int
    t_off: int = 1
    depth: int = 0
    bits: int = 0


@runtime_checkable
class Neuron(Protocol):
    """A rule of firing.

    Attributes:
        name: for tables.
        alphabet: what one spike can say.
        source: who proposed it.
        decay: what is left of the membrane from one step to the next.
    """

    name: ClassVar[str]
    alphabet: ClassVar[str]
    source: ClassVar[str]

    @property
    def decay(self) -> float: ...

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        """What is sent, in units of ``theta``, by neurons with these membranes that have sent ``sent`` so far."""
        ...

    def spikes(self, fired: Tensor) -> Tensor:
        """How many spikes it takes to send ``fired``."""
        ...

    def rest(self, levels: Levels) -> int:
        """How many steps without input and without any spike show that, without input, none will come."""
        ...


@dataclass(frozen=True)
class _Unit:
    """Spikes of one unit each, no leak."""

    @property
    def decay(self) -> float:
        return 1.0

    def spikes(self, fired: Tensor) -> Tensor:
        return fired.abs()

    def rest(self, levels: Levels) -> int:
        return 1


@dataclass(frozen=True)
class SpikeTracking(_Unit):
    """ST-BIF: both signs, and a tracer that keeps the total within the quantizer's levels.

    ``o = +1 if v >= theta and n < highest;  -1 if v < 0 and n > lowest;  else 0``
    """

    name: ClassVar[str] = "ST-BIF"
    alphabet: ClassVar[str] = "-1, 0, +1"
    source: ClassVar[str] = "You et al., ICML 2024"

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        return spikes_of(membrane, sent, theta, levels)


@dataclass(frozen=True)
class IntegrateAndFire(_Unit):
    """IF with reset by subtraction: ``o = 1 if v >= theta``. What was sent too soon is never taken back."""

    name: ClassVar[str] = "IF"
    alphabet: ClassVar[str] = "0, 1"
    source: ClassVar[str] = "Rueckauer et al., Frontiers in Neuroscience 2017; v_0 = theta/2: Bu et al., ICLR 2022"

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        return (membrane >= theta).to(sent.dtype)


@dataclass(frozen=True)
class CappedIF(_Unit):
    """IF that stops at the quantizer's highest code: ``o = 1 if v >= theta and n < highest``."""

    name: ClassVar[str] = "IF with cap"
    alphabet: ClassVar[str] = "0, 1"
    source: ClassVar[str] = "IF, with the upper half of ST-BIF's tracer"

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        return ((membrane >= theta) & (sent < levels.highest)).to(sent.dtype)


@dataclass(frozen=True)
class Leaky(IntegrateAndFire):
    """LIF with reset by subtraction: as IF, but the membrane forgets ``1 - keep`` of itself each step.

    Args:
        keep: what is left from one step to the next, 0 to 1.
    """

    keep: float = 0.95
    name: ClassVar[str] = "LIF"
    alphabet: ClassVar[str] = "0, 1"
    source: ClassVar[str] = "Gerstner & Kistler, Spiking Neuron Models, 2002, section 4.1"

    def __post_init__(self):
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise StageError(
                f"Leaky(keep={self.keep!r}): a membrane keeps more than nothing and at most all of itself."
            )

    @property
    def decay(self) -> float:
        return self.keep


@dataclass(frozen=True)
class SignedIF(_Unit):
    """Signed IF: takes back what it has sent (``-1 if v < 0 and n > lowest``), but no cap keeps it from sending on."""

    name: ClassVar[str] = "signed IF, no cap"
    alphabet: ClassVar[str] = "-1, 0, +1"
    source: ClassVar[str] = "Hu et al., Fast-SNN, IEEE TPAMI 2023"

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        return (membrane >= theta).to(sent.dtype) - ((membrane < 0) & (sent > levels.lowest)).to(sent.dtype)


@dataclass(frozen=True)
class Bipolar(_Unit):
    """Both signs and no tracer: ``+1 if v >= theta, -1 if v < 0``. Nothing rectifies: totals go below zero."""

    name: ClassVar[str] = "bipolar, no tracer"
    alphabet: ClassVar[str] = "-1, 0, +1"
    source: ClassVar[str] = "ST-BIF without its tracer; signed neurons: Kim et al., Spiking-YOLO, AAAI 2020"

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        return (membrane >= theta).to(sent.dtype) - (membrane < 0).to(sent.dtype)


@dataclass(frozen=True)
class Group(_Unit):
    """A group of IF neurons with one membrane, up to ``members`` spikes a step.

    ``o = clip(floor(v/theta), 0, members)``

    Args:
        members: neurons in the group.
    """

    members: int = 4
    name: ClassVar[str] = "group neuron"
    alphabet: ClassVar[str] = "0..members"
    source: ClassVar[str] = "Lv et al., Optimal ANN-SNN conversion with group neurons, ICASSP 2024"

    def __post_init__(self):
        if isinstance(self.members, bool) or not isinstance(self.members, int) or self.members < 1:
            raise StageError(f"Group({self.members!r}): a group has a whole number of members, at least 1.")

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        return torch.floor(membrane / theta).clamp(0, self.members).to(sent.dtype)


@dataclass(frozen=True)
class Radix:
    """Radix-weighted spikes: a spike's weight is set by when it comes, the greatest power of two first.

    In phase ``k = 0..B-1`` of ``B = ceil(log2(highest + 1))``: ``o = w_k if v >= w_k theta, else 0``,
    ``w_k = 2^(B-1-k)``.

    Args:
        waits: each layer fires in one window, after the window of the layers before it: exact where
            ``lowest = 0`` and ``highest = 2^B - 1``, at a latency of the network's greatest ``B`` steps a layer.
            Otherwise all layers fire from step 1, window after window.
    """

    waits: bool = False
    name: ClassVar[str] = "radix-weighted"
    alphabet: ClassVar[str] = "0, 1 (weighted by the step)"
    source: ClassVar[str] = (
        "Wang et al., Efficient Spiking Neural Networks with Radix Encoding, 2021; "
        "Kim et al., weighted spikes, Neurocomputing 2018"
    )

    @property
    def decay(self) -> float:
        return 1.0

    def fire(self, membrane: Tensor, sent: Tensor, theta: Tensor, levels: Levels, when: When) -> Tensor:
        bits = max(levels.highest.bit_length(), 1)
        begun = when.t - 1
        if self.waits:
            begun -= when.t_off - 1 + when.depth * max(when.bits, bits)
            if not 0 <= begun < bits:
                return torch.zeros_like(sent)
        weight = 2 ** (bits - 1 - begun % bits)
        return (membrane >= weight * theta).to(sent.dtype) * weight

    def spikes(self, fired: Tensor) -> Tensor:
        return (fired != 0).to(fired.dtype)

    def rest(self, levels: Levels) -> int:
        return _NEVER if self.waits else levels.highest.bit_length()


#: The neurons of the comparison (docs/why-st-bif.md).
NEURONS: dict[str, Neuron] = {
    "ST-BIF": SpikeTracking(),
    "IF": IntegrateAndFire(),
    "IF with cap": CappedIF(),
    "LIF, 0.95": Leaky(0.95),
    "signed IF, no cap": SignedIF(),
    "bipolar, no tracer": Bipolar(),
    "group of 4": Group(4),
    "radix-weighted": Radix(),
    "radix-weighted, layer after layer": Radix(waits=True),
}
