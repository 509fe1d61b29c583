"""SNN -> what happened: the reference engine, a fast one, and hardware's own form, all of the same steps."""

from spikezip.run.drift import Drift, LayerDrift, drift
from spikezip.run.engine import Engine, execute
from spikezip.run.event import event
from spikezip.run.exit import EarlyExit, Entropy, Margin, Probability, Settled, parse_exit
from spikezip.run.reference import reference
from spikezip.run.replay import replay
from spikezip.run.result import Observer, Outcome, Run, State
from spikezip.run.stream import Stream, stream
from spikezip.run.sweep import sweep

__all__ = [
    "Drift",
    "EarlyExit",
    "Engine",
    "Entropy",
    "LayerDrift",
    "Margin",
    "Observer",
    "Outcome",
    "Probability",
    "Run",
    "Settled",
    "State",
    "Stream",
    "drift",
    "event",
    "execute",
    "parse_exit",
    "reference",
    "replay",
    "stream",
    "sweep",
]
