"""Where tracers best start: near where they will end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from spikezip.graph.modes import building
from spikezip.measure.equivalence import qann_codes
from spikezip.quantize.calibrate import LIMIT, gather
from spikezip.spike.swap import spike


@building()
def mean_codes(qann: fx.GraphModule, data: Tensor | Iterable[Any], *, limit: int = LIMIT) -> dict[str, Tensor]:
    """Each neuron's mean code on some data, rounded: initial codes for :func:`~spikezip.spike.spike`.

    A network that starts there sends only what sets an input apart from the mean: fewer spikes, and fewer steps to
    equilibrium, on which the start has no influence. Made for a pulse: under a slow release the first steps lead away.

    Args:
        qann: a calibrated QANN.
        data: inputs ``[N, ...]``, or an iterable of batches or ``(images, labels)`` pairs.
        limit: how many images are used at most.

    Returns:
        Codes by layer, in the shape of its tracers of one sample, in the shortest type that holds them.

    Source: spikezip. To start membranes off zero is usual (half a threshold: Bu et al., AAAI 2022); tracers, ours.
    """
    snn = spike(qann, initial_code=0)
    sums: dict[str, Tensor] = {}
    images = 0
    for chunk in gather(qann, data, limit):
        images += chunk[0].shape[0]
        for name, codes in qann_codes(snn, chunk)[0].items():
            total = codes.sum(0, dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total
    return {name: (sums[name] / images).round().to(neuron.levels.storage) for name, neuron in snn.layers}
