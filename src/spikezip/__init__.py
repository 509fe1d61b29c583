"""spikezip: trained networks in, certified spiking neural networks out.

>>> import spikezip, torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
>>> images = torch.rand(32, 4)
>>> snn = spikezip.convert(model, images[:1], images, levels=8)
>>> spikezip.verify(snn, images).equal
True
>>> snn.run(images).outcome.value
'SETTLED'
"""

import spikezip.interrupt  # before torch

# Packages first: some verbs share the name of the package they live in, and are to win here.
import spikezip.measure
import spikezip.morph
import spikezip.quantize
import spikezip.report
import spikezip.run
import spikezip.spike  # noqa: F401
from spikezip.errors import SpikezipError
from spikezip.graph import capture
from spikezip.levels import Levels
from spikezip.measure import Audit, Certificate, EnergyModel, Record, audit, measure, verify
from spikezip.morph import Activation, Morph, Pooling, Residual, morph
from spikezip.pipeline import SNN, convert, load, report, spike
from spikezip.quantize import calibrate, quantize, to_integer
from spikezip.run import Engine, Outcome, Run, State
from spikezip.spike import Constant, Even, Pulse
from spikezip.train import PET, QAT, Plan, finetune
from spikezip.version import __version__

__all__ = [
    "PET",
    "QAT",
    "SNN",
    "Activation",
    "Audit",
    "Certificate",
    "Constant",
    "EnergyModel",
    "Engine",
    "Even",
    "Levels",
    "Morph",
    "Outcome",
    "Plan",
    "Pooling",
    "Pulse",
    "Record",
    "Residual",
    "Run",
    "SpikezipError",
    "State",
    "__version__",
    "audit",
    "calibrate",
    "capture",
    "convert",
    "finetune",
    "load",
    "measure",
    "morph",
    "quantize",
    "report",
    "spike",
    "to_integer",
    "verify",
]
