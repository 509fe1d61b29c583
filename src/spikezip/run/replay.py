"""The sweep with all steps of all images in every call, captured as a CUDA graph and replayed: for few images."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.kernels import Moves, Rows, copied_once, exactly
from spikezip.run.block import Block
from spikezip.run.exit import EarlyExit
from spikezip.run.plan import Plan, plan_of
from spikezip.run.result import Observer, Run, State
from spikezip.run.sweep import Results
from spikezip.spike.swap import SpikingNetwork

_BLOCK = 16  # steps of a graph
_KEPT = 8  # graphs of a network: one for each size of batch, and each form of a block
_CAPTURING = threading.Lock()  # one waits for the GPU before it captures, which another's capture forbids


@torch.no_grad()
@exactly
def replay(
    snn: SpikingNetwork,
    inputs: tuple[Tensor, ...],
    steps: int,
    *,
    state: State | None = None,
    stop: bool = True,
    observe: Observer | None = None,
    early_exit: EarlyExit | None = None,
    block: int = _BLOCK,
) -> Run:
    """Run an SNN with one CUDA graph for a whole block of steps.

    With few images a GPU is done before the CPU has told it what comes next. Here every layer is computed for every
    step of every image, so nothing depends on what changed, and all calls of a block are captured once and launched
    together from then on. It is the sweep's arithmetic, and so its result. The graph belongs to the network, and to one
    size of batch; the eight that were used last are kept, with the GPU's memory that they work in.

    Args:
        snn: the network.
        inputs: its inputs, ``[B, ...]`` each. On a CPU there are no graphs, and the :func:`sweep` is faster.
        steps: how many steps at most.
        state: tracers to start from; the network's own if not given.
        stop: end after the block in which every image is settled.
        observe: as in :func:`sweep`.
        early_exit: lets images go before; they are computed on with their batch, but nothing of it is kept.
        block: time steps per graph.

    Returns:
        The :class:`Run`, of as many steps as were run.

    Raises:
        StageError: as :func:`sweep`; or an operation of this network waits for the GPU, so that it cannot be captured.
    """
    so_far = _Replayed(snn, plan_of(snn), inputs, steps, state, early_exit)
    so_far.add(torch.arange(inputs[0].shape[0]), stop, observe, min(block, steps))
    return so_far.run(stop)


class _Replayed(Results):
    """Results of graphs that always run all images, also those that need no more steps."""

    engine = "replay"

    def _compute(
        self, running: Tensor, times: range, known: dict[fx.Node, Any], keep_codes: bool
    ) -> tuple[list[Tensor], dict[str, Moves], dict[str, Rows]]:
        before = self._before(times)
        shares = self._shares(times)
        form = (tuple(map(_form, self.inputs)), bool(before), *map(tuple, shares), keep_codes)
        captured = _captured(self.plan, form, self.snn, self.inputs, before, shares, keep_codes)
        return captured(self.inputs, before).of(running)


def _form(x: Tensor) -> tuple[Any, ...]:
    return x.device, x.dtype, x.shape, x.stride()


@dataclass(frozen=True)
class _Found:
    """What a block gave: outputs ``[K, B, ...]``, counts ``[layers, 3, K, B]``, tracers, and codes if wanted."""

    outputs: list[Tensor]
    counts: Tensor
    last: dict[str, Tensor]
    codes: dict[str, Rows]

    def copied(self) -> _Found:
        """Where the next replay does not write; counts on the CPU."""
        return _Found(
            outputs=[x.clone() for x in self.outputs],
            last={layer: x.clone() for layer, x in self.last.items()},
            codes={layer: x.with_rows(x.rows.clone()) for layer, x in self.codes.items()},
            counts=self.counts.cpu(),  # waits for all of them
        )

    def of(self, running: Tensor) -> tuple[list[Tensor], dict[str, Moves], dict[str, Rows]]:
        """For some images."""
        outputs, counts, last, codes = self.outputs, self.counts, self.last, self.codes
        if running.numel() < counts.shape[-1]:
            outputs, counts = [x[:, running.to(x.device)] for x in outputs], counts[..., running]
            last = {k: v[running.to(v.device)] for k, v in last.items()}
            codes = {k: v.with_rows(v.rows, v.map[:, running]) for k, v in codes.items()}
        moves = {
            k: Moves(v, spikes, negative, behind > 0)
            for (k, v), (spikes, negative, behind) in zip(last.items(), counts)
        }
        return outputs, moves, codes


class _Captured:
    """A block of steps, recorded once: new images and tracers go where the old ones lay."""

    def __init__(
        self,
        plan: Plan,
        snn: SpikingNetwork,
        inputs: tuple[Tensor, ...],
        before: dict[str, Tensor],
        shares: tuple[list[float], list[float]],
        keep_codes: bool,
    ):
        self.snn, self.plan, self.shares, self.keep_codes = snn, plan, shares, keep_codes
        self.inputs = tuple(x.clone() for x in inputs)
        storage = {str(node.target): neuron.levels.storage for node, neuron in plan.neurons.items()}
        device = inputs[0].device
        self.before = {name: x.to(device, storage[name], copy=True) for name, x in before.items()}
        self.lock = threading.Lock()  # they are written to for each run
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self.graph, self.found = self._capture(device)

    def _compute(self) -> _Found:
        block = Block(self.snn, self.plan, self.inputs, *self.shares, self.before, {}, self.keep_codes, every=True)
        outputs, moves = block.run(), block.moves
        counts = torch.stack([torch.stack([m.spikes, m.negative, m.behind.long()]) for m in moves.values()])
        return _Found(outputs, counts, {name: m.last for name, m in moves.items()}, block.codes)

    def _capture(self, device: torch.device) -> tuple[torch.cuda.CUDAGraph, _Found]:
        """Run once, which compiles, checks and copies what is needed once; then record."""
        kept: dict[Any, Tensor] = {}
        with torch.cuda.device(device), copied_once(kept):
            stream, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(stream)
            with torch.cuda.stream(beside):
                self._compute()
            stream.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    found = self._compute()
            except RuntimeError as error:
                raise StageError(
                    f"This network cannot be captured as a CUDA graph, as one of its operations waits for the GPU: "
                    f"{error}. Run it with the sweep engine."
                ) from error
        self.kept = kept  # the graph reads them
        return graph, found

    def __call__(self, inputs: tuple[Tensor, ...], before: dict[str, Tensor]) -> _Found:
        with self.lock:
            for mine, x in zip(self.inputs, inputs, strict=True):
                mine.copy_(x)
            for name, mine in self.before.items():
                mine.copy_(before[name])
            if self.graph is None:
                return self._compute().copied()
            self.graph.replay()
            return self.found.copied()


def _captured(plan: Plan, form: tuple, *rest: Any) -> _Captured:
    """The recorded block of a form, made where there is none."""
    with _CAPTURING:
        captured = plan.captured.pop(form, None) or _Captured(plan, *rest)
        plan.captured[form] = captured  # the last one used comes last
        while len(plan.captured) > _KEPT:
            del plan.captured[next(iter(plan.captured))]
        return captured
