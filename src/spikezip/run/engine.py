"""Running a network on many images, with the engine of one's choice."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from spikezip.errors import InputError, StageError
from spikezip.graph import network
from spikezip.kernels import exactly
from spikezip.run.event import event
from spikezip.run.exit import EarlyExit, check_exit
from spikezip.run.reference import reference
from spikezip.run.replay import replay
from spikezip.run.result import Observer, Run, State, join
from spikezip.run.step import outputs_first, pieces
from spikezip.run.sweep import sweep
from spikezip.spike.swap import SpikingNetwork, expect_snn, tracer_shape


class Engine(enum.Enum):
    """How an SNN is run; where arithmetic is exact all give the same spikes."""

    REFERENCE = "reference"  #: step by step; in floats, the QANN's very operations on the QANN's very batch
    SWEEP = "sweep"  #: a block of steps per call; fast
    REPLAY = "replay"  #: the sweep as a CUDA graph: for few images on a GPU
    EVENT = "event"  #: increments and membranes, as hardware does; in floats it may drift


_BATCH, _BATCH_OF_GPU = 64, 512
_ENGINES = {Engine.REFERENCE: reference, Engine.SWEEP: sweep, Engine.REPLAY: replay, Engine.EVENT: event}


def execute(
    snn: SpikingNetwork,
    images: Tensor | Sequence[Tensor],
    steps: int | None = None,
    *,
    engine: Engine = Engine.SWEEP,
    batch: int | None = None,
    state: State | None = None,
    stop: bool = True,
    observe: Observer | None = None,
    early_exit: EarlyExit | None = None,
) -> Run:
    """Run an SNN.

    Args:
        snn: the network.
        images: its input ``[N, ...]``, or several.
        steps: how many steps; None runs until every image has settled (the static bound at most).
        engine: which engine.
        batch: how many images are run together; 64, or on a GPU 512, if not given.
        state: where to start from (see :class:`State`). Steps are counted anew, and so is the release: what has arrived
            by a pulse stays, while other encodings begin again.
        stop: stop computing once settled; results are held to ``steps`` either way.
        observe: see :data:`Observer`.
        early_exit: lets each image go when the rule says so (or when it has settled); :class:`Run` says when.

    Returns:
        The :class:`Run`, of ``steps`` steps if given.

    Raises:
        InputError: the images, or the state, do not fit the network; or ``early_exit`` is no rule.
        StageError: ``steps`` or ``batch`` is not positive, or missing for an encoding that needs it; or ``engine`` is
            none.
    """
    inputs = check_inputs(snn, images)
    if not isinstance(engine, Engine):
        raise StageError(f"engine={engine!r}: give one of {', '.join(map(str, Engine))}.")
    check_steps(snn, steps)
    check_numbers(steps=steps, batch=batch)
    if early_exit is not None:
        check_exit(early_exit)
    if state is not None and not isinstance(state, State):
        raise InputError(f"The state is a {type(state).__name__}; give the .state of a run.")
    batch = batch or (_BATCH if inputs[0].device.type == "cpu" else _BATCH_OF_GPU)
    if state is not None and state.tracers:
        _check_state(snn, state, inputs[0].shape[0])
    limit = steps or snn.t_off(1) + (snn.bound_from_anywhere if state is not None and state.tracers else snn.bound)
    parts = []
    for start, piece in pieces(inputs, batch):
        before = state.part(start, start + batch) if state else None
        watch = _offset(observe, start) if observe else None
        parts.append(_ENGINES[engine](snn, piece, limit, state=before, stop=stop, observe=watch, early_exit=early_exit))
    return join(parts, steps)


def _offset(observe: Observer, start: int) -> Observer:
    return lambda layer, t, images, codes: observe(layer, t, images + start, codes)


def _check_state(snn: SpikingNetwork, state: State, images: int) -> None:
    nodes = {str(n.target): n for n in snn.graph.graph.nodes if n.op == "call_module"}
    for name, neuron in snn.layers:
        tracer = state.tracers.get(name)
        if not isinstance(tracer, Tensor) or tracer.dtype is torch.bool:
            raise InputError(f"The state has no tracers of layer {name!r}: it is another network's. Start without it.")
        wanted = (images, *tracer_shape(network.spec(nodes[name])))
        if tracer.shape != wanted:
            raise InputError(
                f"The state holds tracers of shape {tuple(tracer.shape)} for layer {name!r}; those of {images} images "
                f"have shape {wanted}. Go on with the images it came from."
            )
        lowest, highest = neuron.levels.lowest, neuron.levels.highest
        if not bool(((tracer >= lowest) & (tracer <= highest) & (tracer == tracer.round())).all()):
            raise InputError(
                f"The state's tracers of layer {name!r} are not all whole numbers in {lowest}..{highest}. Start from "
                "the state of a run."
            )
    if others := state.tracers.keys() - dict(snn.layers).keys():
        raise InputError(
            f"The state has tracers of {min(others)!r}, which this network has not: it is another network's. Start "
            "without it."
        )
    if any(len(kept) != images for kept in state.memory.values()):
        raise InputError(f"The state's memory is not of {images} images. Go on with the images it came from.")


def check_steps(snn: SpikingNetwork, steps: int | None) -> None:
    """StageError where it must be said how many steps there are, and is not."""
    if steps is None and snn.lasts:
        raise StageError("A Constant encoding lasts as long as the run: say how many steps.")


def check_numbers(**numbers: int | None) -> None:
    """StageError unless each is a whole number from 1, or None."""
    check_counts(**{name: number for name, number in numbers.items() if number is not None})


def check_counts(**numbers: int) -> None:
    """StageError unless each is a whole number from 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise StageError(f"{name}={number!r}: give a whole number, at least 1.")


def check_inputs(snn: SpikingNetwork, images: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The inputs as a tuple; InputError unless they fit the network."""
    expect_snn(snn)
    specs = network.info(snn.graph).inputs
    inputs = tuple(images) if isinstance(images, Sequence) else (images,)
    if len(inputs) != len(specs):
        raise InputError(f"This network takes {len(specs)} inputs; {len(inputs)} were given.")
    for spec, x in zip(specs, inputs, strict=True):
        spec.check(x, "input")
    if len({x.shape[0] for x in inputs}) > 1:
        raise InputError(f"The inputs have different batch sizes: {[x.shape[0] for x in inputs]}.")
    return inputs


@torch.no_grad()
@exactly
def qann_outputs(snn: SpikingNetwork, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The QANN's outputs, images first."""
    return outputs_first(snn.qann, snn.qann(*inputs), inputs[0].shape[0])
