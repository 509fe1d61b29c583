"""Neurons and synapses on rows of time steps; nothing above knows which implementation ran."""

from spikezip.kernels.alone import no_compiler, torch_alone
from spikezip.kernels.events import dense_synapses
from spikezip.kernels.memory import keep_freed
from spikezip.kernels.precision import exactly, full_precision
from spikezip.kernels.rows import (
    SMOOTH,
    Apart,
    Joined,
    Rows,
    Smooth,
    Sum,
    gather,
    layout_of,
    max_pool2d,
    tracers,
    union,
)
from spikezip.kernels.scan import Moves, Scan, scan
from spikezip.kernels.synapse import Synapse, conv2d, pack
from spikezip.kernels.threads import share_out, threads, workers
from spikezip.kernels.transfers import copied_once, to_device

__all__ = [
    "SMOOTH",
    "Apart",
    "Joined",
    "Moves",
    "Rows",
    "Scan",
    "Smooth",
    "Sum",
    "Synapse",
    "conv2d",
    "copied_once",
    "dense_synapses",
    "exactly",
    "full_precision",
    "gather",
    "keep_freed",
    "layout_of",
    "max_pool2d",
    "no_compiler",
    "pack",
    "scan",
    "share_out",
    "threads",
    "to_device",
    "torch_alone",
    "tracers",
    "union",
    "workers",
]
