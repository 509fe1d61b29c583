"""What happened -> numbers: equivalence, accuracy at every step, spikes."""

from spikezip.measure.ablation import Ablation, ablate
from spikezip.measure.audit import Audit, AuditRow, audit
from spikezip.measure.compare import Comparison, LayerDifference, OutputDifference, compare
from spikezip.measure.conditions import Condition, conditions, default_engine
from spikezip.measure.counts import count
from spikezip.measure.energy import Energy, EnergyModel, energy_models, energy_record, price
from spikezip.measure.equivalence import Certificate, LayerCheck, verify
from spikezip.measure.exits import ExitPoint, choose_threshold, exit_curve, exit_point, exit_run, exit_steps
from spikezip.measure.initial import mean_codes
from spikezip.measure.record import Record, measure
from spikezip.measure.work import Counts

__all__ = [
    "Ablation",
    "Audit",
    "AuditRow",
    "Certificate",
    "Comparison",
    "Condition",
    "Counts",
    "Energy",
    "EnergyModel",
    "ExitPoint",
    "LayerCheck",
    "LayerDifference",
    "OutputDifference",
    "Record",
    "ablate",
    "audit",
    "choose_threshold",
    "compare",
    "conditions",
    "count",
    "default_engine",
    "energy_models",
    "energy_record",
    "exit_curve",
    "exit_point",
    "exit_run",
    "exit_steps",
    "mean_codes",
    "measure",
    "price",
    "verify",
]
