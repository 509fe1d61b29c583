"""How far the event engine drifts from the reference where sums are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikezip.graph.modes import default_device
from spikezip.run.engine import Engine, check_counts, check_inputs, execute
from spikezip.run.step import pieces
from spikezip.spike.swap import SpikingNetwork


@dataclass(frozen=True)
class LayerDrift:
    """One neuron layer, step by step: the share of tracers that differ, and the greatest difference in levels."""

    differ: tuple[float, ...]
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Drift:
    """The event engine beside the reference.

    Attributes:
        layers: by name, in order of execution.
        outputs: per output and step, the greatest absolute difference.
    """

    layers: Mapping[str, LayerDrift]
    outputs: tuple[tuple[float, ...], ...]

    @property
    def none(self) -> bool:
        """Whether no tracer and no output differs at any step."""
        return not any(max(d.levels) for d in self.layers.values()) and not any(max(o) for o in self.outputs)


@default_device()
def drift(snn: SpikingNetwork, images: Tensor | Sequence[Tensor], steps: int, *, batch: int = 64) -> Drift:
    """Run the reference and the event engine on the same images and compare every tracer at every step.

    Args:
        snn: the network; one made by ``to_integer`` has no drift.
        images: its input ``[N, ...]``, or several.
        steps: how many steps.
        batch: images run together.

    Returns:
        The :class:`Drift`, in levels.

    Raises:
        InputError: the images do not fit the network.
        StageError: ``steps`` or ``batch`` is not a positive whole number.
    """
    inputs = check_inputs(snn, images)
    check_counts(steps=steps, batch=batch)
    differ = {name: torch.zeros(steps, dtype=torch.float64) for name, _ in snn.layers}
    most = {name: torch.zeros(steps, dtype=torch.int64) for name, _ in snn.layers}
    count = {name: 0 for name, _ in snn.layers}
    outputs: list[Tensor] = []
    for _, piece in pieces(inputs, batch):
        seen = []
        for engine in (Engine.REFERENCE, Engine.EVENT):
            tracers: dict[tuple[str, int], Tensor] = {}
            run = execute(
                snn, piece, steps, engine=engine, batch=batch, stop=False,
                observe=lambda name, t, which, codes, into=tracers: into.update({(name, t): codes[0]}),
            )  # fmt: skip
            seen.append((run, tracers))
        (one, wanted), (two, found) = seen
        for (name, t), codes in wanted.items():
            away = (found[name, t] - codes).abs()
            differ[name][t - 1] += float((away > 0).sum())
            most[name][t - 1] = max(int(most[name][t - 1]), int(away.max()))
            count[name] += away.numel() if t == 1 else 0
        here = [(a.double() - b.double()).abs().flatten(1).amax(1) for a, b in zip(one.outputs, two.outputs)]
        outputs = here if not outputs else [torch.maximum(a, b) for a, b in zip(outputs, here)]
    return Drift(
        {n: LayerDrift(tuple((differ[n] / count[n]).tolist()), tuple(most[n].tolist())) for n in differ},
        tuple(tuple(o.tolist()) for o in outputs),
    )
