"""ANN -> QANN: where neurons must sit, LSQ quantizers there, scales from real data, integer weights."""

from spikezip.quantize.calibrate import calibrate
from spikezip.quantize.insert import insert_quantizers, quantize
from spikezip.quantize.integer import Exactness, to_integer
from spikezip.quantize.quantizer import Quantizer, lsq

__all__ = ["Exactness", "Quantizer", "calibrate", "insert_quantizers", "lsq", "quantize", "to_integer"]
