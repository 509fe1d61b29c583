"""The SNN's first steps without training: scales and weights fitted to what the ANN gives, step by weighed step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph.modes import building
from spikezip.levels import Levels
from spikezip.quantize.calibrate import LIMIT, calibrate_readings
from spikezip.spike.encoding import Constant, Encoding, Pulse
from spikezip.spike.neuron import starting_code
from spikezip.train.checks import are_weights
from spikezip.train.trajectory import unroll


@building()
def fit_first_steps(
    qann: fx.GraphModule,
    original: fx.GraphModule,
    data: Tensor | Iterable[Any],
    steps: Sequence[float],
    encoding: Encoding = Pulse(),
    *,
    settled: float = 0.0,
    initial_code: int = 0,
    limit: int = LIMIT,
) -> None:
    """Set scales and refit weights, in place and without labels, so that the SNN is right at its first steps.

    :class:`~spikezip.quantize.refit.Refit` fits each layer on what the quantized layers before hand over once they have
    settled. Here they hand over what the SNN's neurons hold at the steps that count, late as they are, so that each
    layer makes up for the lag too::

        sum over images and steps t of w_t |f(a) - f(W x_t + b + r_t)|^2

    ``a`` is the ANN's value. What then settles is another network, nearer to the ANN at step T and further from it in
    the end, unless ``settled`` counts too.

    Args:
        qann: a graph with quantizers, as ``quantize`` made it.
        original: what ``quantize`` was given as ``original``; without one, the ANN that was quantized.
        data: calibration data, as ``quantize`` takes it.
        steps: ``w_1 ... w_T``, how much each step counts: ``(0, 1)`` for the answer at t = 2, ``(1, 1)`` for both.
        encoding: how the SNN will be given its input; at a step that counts it must all have arrived.
        settled: how much the QANN's own values count.
        initial_code: where tracers will start (see :func:`spikezip.spike`).
        limit: how many images are used at most.

    Raises:
        StageError: no step counts, one does before the input is complete, or the network cannot be unrolled.
        CalibrationError: there is no data, or the network's values are not finite on it.
    """
    steps = tuple(steps) if isinstance(steps, Iterable) else steps
    if not are_weights(steps) or not are_weights((settled,)) or not any((*steps, settled)):
        raise StageError(
            f"The steps' weights are {steps!r}, the settled answer's is {settled!r}: give one for each step, as (0, 1) "
            "for t = 2, 0 or more, and not 0 all of them."
        )
    early = [t for t, weight in enumerate(steps, 1) if weight and encoding.share(t, len(steps)) < 1]
    if early or isinstance(encoding, Constant):
        raise StageError(
            f"At step {early[0] if early else len(steps)} the input has not all arrived with {encoding}, so its answer "
            "cannot be fitted. Let later steps count, or release the input sooner."
        )
    last = max((t for t, weight in enumerate(steps, 1) if weight), default=0)

    def reached(levels: Levels) -> Levels:
        if settled:
            return levels
        start = starting_code(levels, initial_code)
        return Levels(max(levels.lowest, start - last), min(levels.highest, start + last))

    unrolled = unroll(qann, len(steps), encoding, settled=settled > 0, initial_code=initial_code)
    weights = [*steps, *([settled] if settled else [])]
    calibrate_readings(qann, data, original, unrolled, weights, reached, limit=limit)
