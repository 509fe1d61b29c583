"""What happened -> numbers: equivalence, accuracy at every step, spikes."""

from spikezip.measure.audit import Audit, AuditRow, audit
from spikezip.measure.compare import Comparison, LayerDifference, OutputDifference, compare
from spikezip.measure.counts import count
from spikezip.measure.energy import Energy, EnergyModel, energy_models, energy_record, price
from spikezip.measure.equivalence import Certificate, Condition, LayerCheck, conditions, default_engine, verify
from spikezip.measure.record import Record, measure
from spikezip.measure.work import Counts

__all__ = [
    "Audit",
    "AuditRow",
    "Certificate",
    "Comparison",
    "Condition",
    "Counts",
    "Energy",
    "EnergyModel",
    "LayerCheck",
    "LayerDifference",
    "OutputDifference",
    "Record",
    "audit",
    "compare",
    "conditions",
    "count",
    "default_engine",
    "energy_models",
    "energy_record",
    "measure",
    "price",
    "verify",
]
