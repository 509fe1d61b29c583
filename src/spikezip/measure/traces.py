"""A closer look at one image: membranes of a few neurons, and which neurons fired when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikezip.measure.equivalence import qann_codes
from spikezip.measure.saving import finite
from spikezip.run.reference import reference
from spikezip.spike.swap import SpikingNetwork

_LAYERS, _NEURONS = 6, 48


def _chosen(snn: SpikingNetwork) -> list[str]:
    """Up to six layers, from the first to the last."""
    names = [name for name, _ in snn.layers]
    if len(names) <= _LAYERS:
        return names
    return [names[round(i * (len(names) - 1) / (_LAYERS - 1))] for i in range(_LAYERS)]


def _watch(snn: SpikingNetwork, image: tuple[Tensor, ...], steps: int) -> dict[str, dict[str, Tensor]]:
    drives: dict[str, list[Tensor]] = {}
    tracers: dict[str, list[Tensor]] = {}
    starts: dict[str, Tensor] = {}
    neurons = dict(snn.layers)

    def note(name: str, t: int, which: Tensor, codes: Tensor) -> None:
        if name not in starts:
            starts[name] = neurons[name].start(codes[0]).flatten().double()
        tracers.setdefault(name, []).append(codes[0].flatten().double())

    reference(
        snn,
        image,
        steps,
        stop=False,
        observe=note,
        probe=lambda name, t, drive: drives.setdefault(name, []).append(drive.flatten().double()),
    )
    found = {}
    for name in _chosen(snn):
        tracer = torch.stack(tracers[name])
        spikes = torch.diff(tracer, dim=0, prepend=starts[name].unsqueeze(0))
        found[name] = {"drive": torch.stack(drives[name]), "tracer": tracer, "spikes": spikes}
    return found


def traces(snn: SpikingNetwork, image: tuple[Tensor, ...], steps: int, each: int = 1) -> list[dict[str, Any]]:
    """Drive, membrane, tracer and spikes of the neurons that fire most, ``each`` per chosen layer.

    The membrane is that of the published neuron: ``v = theta/2 + U - theta*S``; the target is the QANN's code.
    A value that is not finite, as a logarithm before spikes arrive, is None.
    """
    neurons, targets = dict(snn.layers), qann_codes(snn, image)[0]
    found = []
    for name, seen in _watch(snn, image, steps).items():
        theta = float(neurons[name].threshold)
        spikes = seen["spikes"]
        for index in spikes.abs().sum(0).topk(min(each, spikes.shape[1])).indices.tolist():
            drive, tracer = seen["drive"][:, index], seen["tracer"][:, index]
            found.append(
                {
                    "layer": name,
                    "neuron": index,
                    "image": 0,
                    "membrane": finite((theta / 2 + drive - theta * tracer).tolist()),
                    "tracer": [int(s) for s in tracer],
                    "spikes": [int(s) for s in spikes[:, index]],
                    "drive": finite(drive.tolist()),
                    "target": int(targets[name].flatten()[index]),
                    "scale": theta,
                }
            )
    return found


def raster(snn: SpikingNetwork, image: tuple[Tensor, ...], steps: int) -> dict[str, Any]:
    """Which of up to 48 neurons a layer, evenly chosen, fired when: ``[t, position, sign]``."""
    layers = []
    for name, seen in _watch(snn, image, steps).items():
        count = seen["tracer"].shape[1]
        ids = [i * count // min(_NEURONS, count) for i in range(min(_NEURONS, count))]
        spikes = seen["spikes"][:, ids]
        events = [[int(t) + 1, int(i), int(spikes[t, i].sign())] for t, i in spikes.nonzero()]
        layers.append({"name": name, "neurons": ids, "spikes": events})
    return {"image": 0, "layers": layers}
