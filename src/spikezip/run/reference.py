"""The reference engine: step by step, one operation at a time, nothing clever. Every other engine is held to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network
from spikezip.kernels import exactly
from spikezip.run.exit import EarlyExit, first_confident
from spikezip.run.result import Observer, Run, State, outcome_of
from spikezip.run.step import at_share, images_back, images_first, outputs_first, untold
from spikezip.spike.neuron import STBIF
from spikezip.spike.swap import SpikingNetwork


@torch.no_grad()
@exactly
def reference(
    snn: SpikingNetwork,
    inputs: tuple[Tensor, ...],
    steps: int,
    *,
    state: State | None = None,
    stop: bool = True,
    observe: Observer | None = None,
    early_exit: EarlyExit | None = None,
    probe: Callable[[str, int, Tensor], None] | None = None,
) -> Run:
    """Run an SNN step by step on accumulated values.

    At step t the input is ``share(t) * x``, biases are ``share(t) * b``, each operation is the QANN's own, and each
    neuron layer moves its tracer towards ``Q(U_t)``.

    Args:
        snn: the network.
        inputs: its inputs, ``[B, ...]`` each.
        steps: how many steps at most.
        state: tracers to start from; the network's own (where its neurons start) if not given.
        stop: end as soon as every image is settled.
        observe: told every layer's tracers at every step.
        early_exit: lets images go before (they are computed on with their batch, but nothing of it is kept).
        probe: told every layer's drive ``U_t`` at every step: (layer, t, ``[B, ...]``).

    Returns:
        The :class:`Run`, of as many steps as were run.
    """

    def advance(t: int, tracers: Mapping[str, Tensor]) -> Moved:
        stepper = _Step(snn, tracers, inputs[0].shape[0], t, steps)
        result = stepper.run(*(snn.encoding.share(t, steps) * x if x.is_floating_point() else x for x in inputs))
        if probe:
            for name, _ in snn.layers:
                probe(name, t, stepper.drive[name])
        behind = {name: stepper.after[name] != stepper.target[name] for name, _ in snn.layers}
        return Moved(result if isinstance(result, tuple) else (result,), stepper.before, stepper.after, behind)

    return stepwise(
        snn, inputs, steps, advance, "reference", state=state, stop=stop, observe=observe, early_exit=early_exit
    )


@dataclass(frozen=True)
class Moved:
    """What one step did: the outputs, and per layer the tracers before and after, and which are to move again."""

    outputs: tuple[Tensor, ...]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    behind: Mapping[str, Tensor]


def stepwise(
    snn: SpikingNetwork,
    inputs: tuple[Tensor, ...],
    steps: int,
    advance: Callable[[int, Mapping[str, Tensor]], Moved],
    engine: str,
    *,
    state: State | None,
    stop: bool,
    observe: Observer | None,
    early_exit: EarlyExit | None = None,
    memory: Callable[[], Mapping[str, Tensor]] = dict,
) -> Run:
    """The loop over time that engines of one step at a time share: ``advance(t, tracers)`` is their step."""
    images = inputs[0].shape[0]
    before = state.tracers if state else {}
    tracers: Mapping[str, Tensor] = {k: before[k].to(m.threshold.dtype) for k, m in snn.layers if k in before}
    t_off = snn.t_off(steps)
    everyone = torch.arange(images)
    outputs: list[tuple[Tensor, ...]] = []
    spikes: dict[str, list[Tensor]] = {name: [] for name, _ in snn.layers}
    negative: dict[str, list[Tensor]] = {name: [] for name, _ in snn.layers}
    settled_at = torch.full((images,), -1, dtype=torch.int64)
    exits = _Exits(early_exit, images) if early_exit else None
    together = {str(node.target) for node, _ in network.modules_of(snn.graph, STBIF) if untold(network.spec(node))}
    for t in range(1, steps + 1):
        moved = advance(t, tracers)
        outputs.append(outputs_first(snn.graph, moved.outputs, images))
        behind = torch.zeros(images, dtype=torch.bool)
        for name, _ in snn.layers:
            move = (moved.after[name] - moved.before[name]).reshape(images, -1)
            spikes[name].append(move.abs().sum(1).to(torch.int64).cpu())
            negative[name].append(move.clamp(max=0).neg().sum(1).to(torch.int64).cpu())
            late = moved.behind[name].reshape(images, -1).any(1).cpu()
            behind |= late.any() if name in together else late
            if observe:
                observe(name, t, everyone, moved.after[name].unsqueeze(0))
        tracers = moved.after
        if t >= t_off:
            settled_at = torch.where(behind, -1, torch.where(settled_at < 0, t, settled_at))
        if exits:
            exits.after(t, outputs, (spikes, negative), tracers, settled_at)
            if bool((exits.at > 0).all()):
                break
        elif t >= t_off and stop and not bool(behind.any()):
            break
    if exits:
        settled_at = torch.where(exits.at > 0, exits.settled_at, settled_at)
    codes = exits.codes(tracers) if exits else tracers
    return Run(
        outputs=tuple(torch.stack(column) for column in zip(*outputs)),
        settled_at=settled_at,
        outcome=outcome_of(settled_at, exits.at if exits else None),
        spikes={k: torch.stack(v) for k, v in spikes.items()},
        negative={k: torch.stack(v) for k, v in negative.items()},
        codes={k: codes[k].to(m.levels.storage) for k, m in snn.layers},
        t_off=t_off,
        engine=engine,
        memory={} if exits else memory(),
        exited_at=exits.at if exits else None,
    )


class _Exits:
    """Who has left: their outputs are held, their spikes no longer counted, their tracers kept as they were."""

    def __init__(self, rule: EarlyExit, images: int):
        self.rule = rule
        self.at = torch.full((images,), -1, dtype=torch.int64)
        self.settled_at = self.at.clone()
        self.kept: dict[str, Tensor] = {}

    def after(
        self,
        t: int,
        outputs: list[tuple[Tensor, ...]],
        counts: tuple[dict[str, list[Tensor]], ...],
        tracers: Mapping[str, Tensor],
        settled_at: Tensor,
    ) -> None:
        """Take in the step just made."""
        gone = self.at > 0
        if bool(gone.any()):
            outputs[-1] = tuple(_choose(gone, old, new) for old, new in zip(outputs[-2], outputs[-1], strict=True))
            for column in (column for count in counts for column in count.values()):
                column[-1] = torch.where(gone, 0, column[-1])
        leaves = ~gone & ((first_confident(self.rule, outputs[-1][0].unsqueeze(0)) > 0) | (settled_at > 0))
        self.at[leaves] = t
        self.settled_at[leaves] = settled_at[leaves]
        self.kept = {k: _choose(gone, self.kept[k], v) if k in self.kept else v for k, v in tracers.items()}

    def codes(self, tracers: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tracers of each image when it left, or now."""
        return self.kept or tracers


def _choose(which: Tensor, old: Tensor, new: Tensor) -> Tensor:
    return torch.where(which.to(new.device).reshape(-1, *[1] * (new.dim() - 1)), old, new)


class _Step(fx.Interpreter):
    """One step: the graph, with the tracers of the step before."""

    def __init__(self, snn: SpikingNetwork, tracers: Mapping[str, Tensor], images: int, t: int, steps: int):
        super().__init__(snn.graph)
        self.extra_traceback = False
        self.bias_share = snn.bias_encoding.share(t, steps)
        self.images = images
        self.start = tracers
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        self.target: dict[str, Tensor] = {}
        self.drive: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function":
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            return at_share(n, args, self.bias_share, kwargs)
        if n.op == "call_module" and isinstance(neuron := self.fetch_attr(str(n.target)), STBIF):
            name, spec = str(n.target), network.spec(n)
            drive = images_first(self.fetch_args_kwargs_from_env(n)[0][0], spec, self.images)
            before = self.start.get(name)
            self.before[name] = neuron.start(drive) if before is None else before
            self.drive[name] = drive
            self.target[name] = neuron.target(drive)
            self.after[name] = neuron(drive, self.before[name])
            return images_back(self.after[name] * neuron.threshold, spec)
        return super().run_node(n)
