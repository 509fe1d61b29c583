"""SNN -> what happened: the reference engine and the fast ones, all of the same steps."""

from spikezip.run.engine import Engine, execute
from spikezip.run.reference import reference
from spikezip.run.result import Observer, Outcome, Run, State
from spikezip.run.sweep import sweep

__all__ = ["Engine", "Observer", "Outcome", "Run", "State", "execute", "reference", "sweep"]
