"""The sweep engine: layer by layer, a block of time steps at once, on what changed."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph import network
from spikezip.kernels import Moves, Rows, exactly, gather, keep_freed, layout_of, share_out, tracers, workers
from spikezip.run.block import Block
from spikezip.run.exit import EarlyExit, Settled, first_confident
from spikezip.run.plan import Plan, plan_of
from spikezip.run.result import Observer, Outcome, Run, State, outcome_of
from spikezip.run.step import images_back, images_first
from spikezip.spike.swap import SpikingNetwork

_VALUES = 3 << 19  # of a layer, on average, in all rows of a chunk: calls are few, and a processor's cache good for it
_VALUES_OF_WIDEST = 16 << 20  # of the widest layer alone: what a processor's memory is good for
_VALUES_OF_GPU = 1 << 29  # what keeps a GPU busy: the processor waits for it once a layer
_BYTES_PER_VALUE = 64  # of a GPU's free memory, with all that is alive at once
_ROWS_PER_LEVEL = 2  # of an image: it rarely makes more before it settles
_BLOCK = 48  # steps of a block: work is shared within one, so long ones; few images take more
_EXIT_BLOCK = 8  # with a rule of confidence: images leave between blocks, so shorter ones


@torch.no_grad()
@exactly
def sweep(
    snn: SpikingNetwork,
    inputs: tuple[Tensor, ...],
    steps: int,
    *,
    state: State | None = None,
    stop: bool = True,
    observe: Observer | None = None,
    early_exit: EarlyExit | None = None,
    block: int | None = None,
    chunk: int | None = None,
) -> Run:
    """Run an SNN with one call per operation for a whole block of steps.

    The same steps as :func:`reference`, so the same result wherever arithmetic is exact. What does not depend on any
    neuron is computed once, and everything else only for the steps and images in which something changed; images that
    have settled leave the batch; the run ends when all have.

    Args:
        snn: the network.
        inputs: its inputs, ``[B, ...]`` each.
        steps: how many steps at most.
        state: tracers to start from; the network's own (where its neurons start) if not given.
        stop: end as soon as every image is settled.
        observe: told every layer's tracers, block by block, for the images still running.
        early_exit: lets images go before. They leave the batch at the end of their block; what the rest of it had
            computed is not kept.
        block: time steps per block; 48, or with a confidence rule 8, if not given.
        chunk: images taken together; if not given, few (so many that a layer's rows hold 1.6 million values on average:
            48 rows of a ResNet-18, 3 images for 16 steps; and the widest layer's 17 million at most), so that values
            stay in a processor's cache and memory small; on a GPU as many as keep it busy (537 million values of the
            widest layer, if it has the memory). On a processor each of torch's threads has a chunk of its own
            (without ``observe``, which is told one by one).

    Returns:
        The :class:`Run`, of as many steps as were run.

    Raises:
        StageError: time cannot be folded into the batch: a value depends on an image's place in it, or a neuron layer's
            values do not keep an image's together.
    """
    so_far = Results(snn, plan_of(snn), inputs, steps, state, early_exit)
    block = block or (_BLOCK if early_exit is None or isinstance(early_exit, Settled) else _EXIT_BLOCK)
    images, on_cpu = inputs[0].shape[0], inputs[0].device.type == "cpu"
    at_once = workers() if on_cpu and observe is None else 1
    plan = so_far.plan
    if on_cpu:
        keep_freed()
        rows = min(_VALUES // plan.average, _VALUES_OF_WIDEST // plan.widest)
    else:
        rows = _values_of_gpu(inputs[0].device) // plan.widest
    of_image = min(block, steps, _ROWS_PER_LEVEL * plan.most_levels)
    chunk = chunk or _evenly(images, max(1, rows // of_image), at_once)
    chunks = [torch.arange(first, min(first + chunk, images)) for first in range(0, images, chunk)]
    share_out(lambda some: so_far.add(some, stop, observe, block), chunks, at_once)
    return so_far.run(stop)


class Results:
    """What a run has found so far; chunks of images are added in any order, by any thread."""

    engine = "sweep"

    def __init__(
        self,
        snn: SpikingNetwork,
        plan: Plan,
        inputs: tuple[Tensor, ...],
        steps: int,
        state: State | None,
        early_exit: EarlyExit | None,
    ):
        self.early_exit = early_exit
        self.snn, self.plan, self.inputs, self.steps = snn, plan, inputs, steps
        self.images = inputs[0].shape[0]
        self.start = dict(state.tracers) if state else {}
        self.t_off = snn.t_off(steps)
        self.tracers: dict[str, Tensor] = {}
        self.settled_at = torch.full((self.images,), -1, dtype=torch.int64)
        self.exited_at = torch.full((self.images,), -1, dtype=torch.int64)
        self.spikes = {name: torch.zeros((steps, self.images), dtype=torch.int64) for name, _ in snn.layers}
        self.negative = {name: torch.zeros_like(counts) for name, counts in self.spikes.items()}
        self.outputs: deque[tuple[int, Tensor | slice, list[Tensor]]] = deque()  # from which step, of which images
        self.done = 0
        self.lock = threading.Lock()  # of what all images share: who makes the tensors, and how far anyone came

    def add(self, chunk: Tensor, stop: bool, observe: Observer | None, block: int) -> None:
        """Run some images to their end."""
        running, known, done = chunk, {}, 0
        while done < self.steps and running.numel():
            times = range(done + 1, min(done + block, self.steps) + 1)
            results, moved, coded = self._compute(running, times, known, bool(observe or self.early_exit))
            behind = torch.zeros((len(times), running.numel()), dtype=torch.bool)
            span = slice(done, times[-1])
            for moves in moved.values():
                behind |= moves.behind
            if observe:
                for name, codes in coded.items():
                    every = tracers(codes, codes.map.flatten(), codes.dtype)
                    observe(name, times[0], running, every.unflatten(0, tuple(codes.map.shape)))
            behind[: max(self.t_off - times[0], 0)] = True
            # Steps of this block: when each image came to rest, and when it leaves; more than there are for neither.
            never = len(times) + 1
            rest = (behind * torch.arange(1, never).unsqueeze(1)).amax(0) + 1
            leave = torch.full_like(rest, never)
            if self.early_exit:
                sure = first_confident(self.early_exit, results[0])
                leave = torch.minimum(rest, torch.where(sure > 0, sure, never))
            ended, left = rest < never, leave < never
            self._count(moved, coded, span, running, leave)
            self._write(results, span, running, rest, leave)
            first = (
                ended & (rest <= leave) & (self.settled_at[running] < 0)
            )  # without stop, settled ones are still here
            self.settled_at[running[first]] = (done + rest)[first]
            self.exited_at[running[left]] = (done + leave)[left]
            done = times[-1]
            with self.lock:
                self.done = max(self.done, done)
            stay = ~(left | ended if stop else left)
            if not stay.all():
                running, known = running[stay], _of(known, stay.nonzero().flatten())

    def _count(
        self, moved: dict[str, Moves], coded: dict[str, Rows], span: slice, running: Tensor, leave: Tensor
    ) -> None:
        """Spikes and tracers, until each image leaves."""
        early = bool((leave < span.stop - span.start).any())
        images = self._where(running)
        there = torch.arange(1, span.stop - span.start + 1).unsqueeze(1) <= leave
        for name, moves in moved.items():
            self.spikes[name][span, images] = moves.spikes * there if early else moves.spikes
            self.negative[name][span, images] = moves.negative * there if early else moves.negative
            self._store(name, images, _at(coded[name], leave, moves.last.dtype) if early else moves.last)

    def _compute(
        self, running: Tensor, times: range, known: dict[fx.Node, Any], keep_codes: bool
    ) -> tuple[list[Tensor], dict[str, Moves], dict[str, Rows]]:
        """A block of steps: outputs, how each layer moved, and its codes if they are wanted."""
        images = self._where(running)
        start = {name: _some(values, images) for name, values in self._before(times).items()}
        inputs = tuple(_some(x, images) for x in self.inputs)
        block = Block(self.snn, self.plan, inputs, *self._shares(times), start, known, keep_codes)
        return block.run(), block.moves, block.codes

    def _before(self, times: range) -> dict[str, Tensor]:
        """All tracers before a block."""
        return self.start if times[0] == 1 else self.tracers

    def _shares(self, times: range) -> tuple[list[float], list[float]]:
        """Of the input, and of the biases, at each step of a block."""
        encodings = self.snn.encoding, self.snn.bias_encoding
        shares, bias_shares = ([encoding.share(t, self.steps) for t in times] for encoding in encodings)
        return shares, bias_shares

    def _store(self, name: str, images: Tensor | slice, last: Tensor) -> None:
        if last.shape[0] == self.images:
            self.tracers[name] = last
            return
        with self.lock:
            if name not in self.tracers:
                size, like = (self.images, *last.shape[1:]), {"dtype": last.dtype, "device": last.device}
                self.tracers[name] = torch.empty(size, **like, memory_format=layout_of(last))
        self.tracers[name][images if isinstance(images, slice) else images.to(last.device)] = last

    def _where(self, running: Tensor, device: torch.device | str = "cpu") -> Tensor | slice:
        """Where the running images, which are in their order, are among all."""
        first, last = int(running[0]), int(running[-1])
        return slice(first, last + 1) if last - first + 1 == running.numel() else running.to(device)

    def _write(self, results: list[Tensor], span: slice, running: Tensor, rest: Tensor, leave: Tensor) -> None:
        """Outputs, until the last of these images has come to rest or left: how long a run will be is not known."""
        steps = torch.arange(min(span.stop - span.start, int(torch.minimum(rest, leave).max()))).unsqueeze(1)
        early = bool((leave <= steps[-1]).any())
        for i, result in enumerate(results):
            if early:
                results[i] = result[torch.minimum(steps, leave - 1).to(result.device), torch.arange(running.numel())]
            elif len(steps) < len(result):
                results[i] = result[: len(steps)].clone()
        self.outputs.append((span.start, self._where(running, results[0].device), results))

    def _outputs(self, done: int) -> tuple[Tensor, ...]:
        """All that was written, each image's held to the end."""
        found = tuple(r.new_empty((done, self.images, *r.shape[2:])) for r in self.outputs[0][2])
        while self.outputs:  # what is copied goes
            first, images, results = self.outputs.popleft()
            for whole, result in zip(found, results, strict=True):
                last = min(first + len(result), done)
                whole[first:last, images] = result[: last - first]
                whole[last:, images] = result[last - first - 1]
        return found

    def run(self, stop: bool) -> Run:
        """Everything, as a value."""
        done, exited_at = self.done, self.exited_at if self.early_exit else None
        outcome = outcome_of(self.settled_at, exited_at)
        if exited_at is not None and bool((exited_at > 0).all()):
            done = min(done, int(exited_at.max()))
        elif outcome is Outcome.SETTLED and stop:
            done = min(done, int(self.settled_at.max()))
        return Run(
            outputs=self._outputs(done),
            settled_at=self.settled_at,
            outcome=outcome,
            spikes={k: v[:done] for k, v in self.spikes.items()},
            negative={k: v[:done] for k, v in self.negative.items()},
            codes=self.tracers,
            t_off=self.t_off,
            engine=self.engine,
            exited_at=exited_at,
        )


def _evenly(images: int, most: int, at_once: int) -> int:
    """How many images a chunk has, if none has more than ``most``, and all of so many that run at once have as many."""
    rounds = -(-images // (most * at_once))
    return -(-images // (rounds * at_once)) if images else 1


def _of(known: dict[fx.Node, Any], images: Tensor) -> dict[fx.Node, Any]:
    """What a block kept, for some of its images."""
    some: dict[fx.Node, Any] = {}
    for node, value in known.items():
        if isinstance(value, Rows):
            if not isinstance(value.rows, Tensor):
                return {}  # several tensors at once: computed anew
            spec, count = network.spec(node), value.map.shape[1]
            rows = images_back(gather(images_first(value.rows, spec, count), images), spec)
            value = value.with_rows(rows, torch.arange(images.numel()).expand(1, -1))
        some[node] = value
    return some


def _some(values: Tensor, images: Tensor | slice) -> Tensor:
    return values[images] if isinstance(images, slice) else gather(values, images)


def _values_of_gpu(device: torch.device) -> int:
    if device.type != "cuda":
        return _VALUES_OF_GPU
    return max(_VALUES, min(_VALUES_OF_GPU, torch.cuda.mem_get_info(device)[0] // _BYTES_PER_VALUE))


def _at(codes: Rows, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Each image's tracers at a step (from 1; the last at most), ``[B, ...]``."""
    when = steps.clamp(max=codes.map.shape[0]) - 1
    return tracers(codes, codes.map[when, torch.arange(codes.map.shape[1])], dtype)
