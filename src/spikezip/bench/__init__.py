"""How long a run takes beside one forward pass of the ANN, beside other ways of running it, in one process."""

from spikezip.bench.cases import Case, images_like, make_case
from spikezip.bench.contenders import CONTENDERS, Contender, installed
from spikezip.bench.speed import Axes, Effort, benchmark
from spikezip.bench.timing import Timing, compare

__all__ = [
    "CONTENDERS",
    "Axes",
    "Case",
    "Contender",
    "Effort",
    "Timing",
    "benchmark",
    "compare",
    "images_like",
    "installed",
    "make_case",
]
