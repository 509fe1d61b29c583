"""Input that changes over time: frames, each replacing the one before, on a network that keeps its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spikezip.errors import InputError
from spikezip.run.engine import Engine, check_counts, check_inputs, execute
from spikezip.run.result import Run, State
from spikezip.spike.encoding import Pulse
from spikezip.spike.swap import SpikingNetwork


@dataclass(frozen=True)
class Stream:
    """What a network did with a sequence of frames.

    Attributes:
        outputs: each of the network's outputs at every step of every frame, ``[F, T, B, ...]``.
        settled_at: per frame and image, the step of that frame from which no neuron fired any more; -1 if some still
            did when the next frame came. ``[F, B]`` int64.
        spikes: per neuron layer, ``[F, T, B]`` int64.
        negative: of these, the negative ones.
        state: at the end, to go on from.
        engine: which engine ran.
    """

    outputs: tuple[Tensor, ...]
    settled_at: Tensor
    spikes: Mapping[str, Tensor]
    negative: Mapping[str, Tensor]
    state: State
    engine: str

    @property
    def logits(self) -> Tensor:
        """The (first) output at the end of each frame, ``[F, B, ...]``: the QANN's on that frame where it settled."""
        return self.outputs[0][:, -1]

    @property
    def settled(self) -> Tensor:
        """Which frames were answered in full, ``[F, B]`` bool."""
        return self.settled_at > 0

    @property
    def total_spikes(self) -> Tensor:
        """Spikes of all layers per frame and image, ``[F, B]``."""
        return torch.stack(list(self.spikes.values())).sum((0, 2))


def stream(
    snn: SpikingNetwork,
    frames: Tensor | Sequence[Tensor],
    steps_per_frame: int,
    *,
    engine: Engine = Engine.SWEEP,
    batch: int = 64,
    state: State | None = None,
) -> Stream:
    """Run a network on frames, one after another; trackers follow the input, so only what changes costs spikes.

    The first frame is released by the network's encoding. Each later one moves the input from the frame before to
    itself by the same shares, ``x_before + share(t) * (x - x_before)``; biases have arrived once and stay.

    Args:
        snn: the network.
        frames: ``[F, B, ...]``, time first, or one such tensor per input; the B streams are independent.
        steps_per_frame: time steps that each frame lasts.
        engine: which engine.
        batch: streams run together.
        state: of an earlier stream, to go on from (its last frame is taken as replaced at once).

    Returns:
        The :class:`Stream`. Where ``settled``, the output is the QANN's on that frame, under the conditions of
        :func:`~spikezip.verify`.

    Raises:
        InputError: the frames do not fit the network, or there are none.
        StageError: ``steps_per_frame`` is not positive.
    """
    several = (frames,) if isinstance(frames, Tensor) else tuple(frames)
    _check(snn, several, steps_per_frame)
    runs: list[Run] = []
    for index in range(several[0].shape[0]):
        now = tuple(x[index] for x in several)
        if state is None:
            run = execute(snn, now, steps_per_frame, engine=engine, batch=batch)
        else:
            before = tuple(x[index - 1] for x in several) if index else None
            run = _follow(snn, before, now, steps_per_frame, engine, batch, state)
        state = run.state
        runs.append(run)
    assert state is not None
    return Stream(
        outputs=tuple(torch.stack(column) for column in zip(*(r.outputs for r in runs))),
        settled_at=torch.stack([r.settled_at for r in runs]),
        spikes={k: torch.stack([r.spikes[k] for r in runs]) for k in runs[0].spikes},
        negative={k: torch.stack([r.negative[k] for r in runs]) for k in runs[0].negative},
        state=state,
        engine=engine.value,
    )


def _check(snn: SpikingNetwork, frames: tuple[Tensor, ...], steps: int) -> None:
    check_counts(steps_per_frame=steps)
    for x in frames:
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[0] < 1:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"The frames are {shape}; pass a tensor of shape [F, B, ...] with F ≥ 1, time first.")
    if len({x.shape[0] for x in frames}) > 1:
        raise InputError(f"The inputs have different numbers of frames: {[x.shape[0] for x in frames]}.")
    for index in range(frames[0].shape[0]):
        check_inputs(snn, tuple(x[index] for x in frames))


def _follow(
    snn: SpikingNetwork,
    before: tuple[Tensor, ...] | None,
    now: tuple[Tensor, ...],
    steps: int,
    engine: Engine,
    batch: int,
    state: State,
) -> Run:
    """One frame after another: the input on its way, a step at a time, then the frame itself."""
    settled = replace(snn, encoding=Pulse(), bias_encoding=Pulse())
    parts: list[Run] = []
    inputs = now
    for inputs, length in _way(snn, before, now, steps):
        parts.append(execute(settled, inputs, length, engine=engine, batch=batch, state=state))
        state = parts[-1].state
    last = parts[-1]
    arrived = inputs is now
    ahead = sum(p.steps for p in parts[:-1])
    return replace(
        last,
        outputs=tuple(torch.cat(column) for column in zip(*(p.outputs for p in parts))),
        settled_at=torch.where((last.settled_at > 0) & arrived, last.settled_at + ahead, -1),
        spikes={k: torch.cat([p.spikes[k] for p in parts]) for k in last.spikes},
        negative={k: torch.cat([p.negative[k] for p in parts]) for k in last.negative},
        t_off=ahead + 1,
    )


def _way(
    snn: SpikingNetwork, before: tuple[Tensor, ...] | None, now: tuple[Tensor, ...], steps: int
) -> Iterator[tuple[tuple[Tensor, ...], int]]:
    """What is shown, and for how many steps."""
    if before is not None and not isinstance(snn.encoding, Pulse):
        for t in range(1, steps + 1):
            if t >= snn.encoding.t_off(steps):
                yield now, steps - t + 1
                return
            share = snn.encoding.share(t, steps)
            yield tuple(torch.lerp(x, y, share) if y.is_floating_point() else y for x, y in zip(before, now)), 1
        return  # the frame ended on its way
    yield now, steps
