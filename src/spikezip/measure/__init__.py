"""What happened -> numbers: equivalence, accuracy at every step, spikes."""

from spikezip.measure.equivalence import Certificate, Condition, LayerCheck, conditions, default_engine, verify
from spikezip.measure.record import Record, measure

__all__ = ["Certificate", "Condition", "LayerCheck", "Record", "conditions", "default_engine", "measure", "verify"]
