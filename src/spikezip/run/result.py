"""What happened in a run, as a value."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Called with (layer, first step, indices of the images [b], tracers [K, b, ...]) for each block of steps.
Observer = Callable[[str, int, Tensor, Tensor], None]


class Outcome(enum.Enum):
    """How a run ended."""

    SETTLED = "SETTLED"  #: no neuron will fire any more: the outputs are the QANN's
    CONFIDENT = "CONFIDENT"  #: stopped early because the answer was clear enough
    STEP_LIMIT = "STEP_LIMIT"  #: the steps ran out first: the outputs are not final


@dataclass(frozen=True)
class State:
    """All that a running SNN remembers of what has arrived; not how much of the input is still to come.

    Attributes:
        tracers: each layer's, ``[B, ...]``, whole numbers.
        memory: what the event engine holds besides them, ``[B, ...]`` each: membranes and accumulated values. Other
            engines need none.
    """

    tracers: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> State:
        """The state of some of the images."""
        return State(
            {k: v[start:stop] for k, v in self.tracers.items()}, {k: v[start:stop] for k, v in self.memory.items()}
        )


@dataclass(frozen=True)
class Run:
    """The result of running an SNN.

    Attributes:
        outputs: each of the network's outputs at every step, ``[T, B, ...]``.
        settled_at: per image, T_eq: the first step from which no neuron fires any more; -1 where the steps ran out
            first. ``[B]`` int64.
        outcome: SETTLED if every image settled; CONFIDENT if every image settled or was let go by a rule of early exit;
            STEP_LIMIT if for some image the steps ran out first.
        spikes: per neuron layer, the spikes (levels moved) of each step and image, ``[T, B]`` int64.
        negative: of these, the negative ones.
        codes: each layer's tracers at the end, ``[B, ...]``, in the shortest type of whole numbers that holds them.
        t_off: the step at which input and biases were complete.
        engine: which engine ran.
        memory: see :class:`State`; empty but for the event engine, and there too after an early exit.
        exited_at: per image, the step at which it left by a rule of early exit, ``[B]`` int64; -1 where the steps ran
            out first. From then on its outputs are held and it spends nothing; ``codes`` are those of that step. None
            if no rule was given.
    """

    outputs: tuple[Tensor, ...]
    settled_at: Tensor
    outcome: Outcome
    spikes: Mapping[str, Tensor]
    negative: Mapping[str, Tensor]
    codes: Mapping[str, Tensor]
    t_off: int
    engine: str
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    exited_at: Tensor | None = None

    def __repr__(self) -> str:
        images, settled = self.settled_at.numel(), self.settled_at[self.settled_at > 0]
        t_eq = f"T_eq up to {int(settled.max())}" if settled.numel() == images else f"{settled.numel()} settled"
        return (
            f"<Run {self.outcome.value}: images={images}, steps={self.steps}, {t_eq}, "
            f"{self.total_spikes.sum() / images:.0f} spikes an image, engine={self.engine}>"
        )

    @property
    def logits(self) -> Tensor:
        """The (first) output at every step, ``[T, B, ...]``."""
        return self.outputs[0]

    @property
    def steps(self) -> int:
        """How many steps were run."""
        return self.outputs[0].shape[0]

    @property
    def answer(self) -> Tensor:
        """The (first) output with which each image ended, ``[B, ...]``: at its exit, settled, or at the last step."""
        return self.outputs[0][-1]

    @property
    def answered_at(self) -> Tensor:
        """Per image, the step of its :attr:`answer`: its exit; without a rule, T_eq; else the last step. ``[B]``."""
        ended = self.settled_at if self.exited_at is None else self.exited_at
        return torch.where(ended > 0, ended, self.steps)

    @property
    def state(self) -> State:
        """The final state, to go on from."""
        return State(self.codes, self.memory)

    @property
    def total_spikes(self) -> Tensor:
        """Spikes of all layers per step and image, ``[T, B]``."""
        return torch.stack(list(self.spikes.values())).sum(0)


def join(parts: list[Run], steps: int | None) -> Run:
    """Runs of parts of a batch as one; those that settled sooner keep their final values."""
    longest = steps or max(part.steps for part in parts)
    settled_at = torch.cat([p.settled_at for p in parts])
    left = [p.exited_at for p in parts if p.exited_at is not None]
    exited_at = torch.cat(left) if left else None
    return Run(
        outputs=tuple(
            torch.cat([_hold(p.outputs[i], longest) for p in parts], 1) for i in range(len(parts[0].outputs))
        ),
        settled_at=settled_at,
        outcome=outcome_of(settled_at, exited_at),
        spikes={k: torch.cat([_silent(p.spikes[k], longest) for p in parts], 1) for k in parts[0].spikes},
        negative={k: torch.cat([_silent(p.negative[k], longest) for p in parts], 1) for k in parts[0].negative},
        codes={k: torch.cat([p.codes[k] for p in parts]) for k in parts[0].codes},
        t_off=max(p.t_off for p in parts),
        engine=parts[0].engine,
        memory={k: torch.cat([p.memory[k] for p in parts]) for k in parts[0].memory},
        exited_at=exited_at,
    )


def outcome_of(settled_at: Tensor, exited_at: Tensor | None) -> Outcome:
    """How a run ended, from when its images settled and left."""
    if bool((settled_at > 0).all()):
        return Outcome.SETTLED
    return Outcome.CONFIDENT if exited_at is not None and bool((exited_at > 0).all()) else Outcome.STEP_LIMIT


def _hold(values: Tensor, steps: int) -> Tensor:
    missing = steps - values.shape[0]
    return values if missing <= 0 else torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])


def _silent(counts: Tensor, steps: int) -> Tensor:
    missing = steps - counts.shape[0]
    return counts if missing <= 0 else torch.cat([counts, counts.new_zeros((missing, *counts.shape[1:]))])
