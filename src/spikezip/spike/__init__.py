"""QANN -> SNN: the ST-BIF neuron, encodings of input and bias, the swap."""

from spikezip.spike.encoding import Constant, Encoding, Even, Pulse, Shares, encoding_text, parse_encoding
from spikezip.spike.neuron import STBIF, membrane_step
from spikezip.spike.swap import SpikingNetwork, check_qann, spike

__all__ = [
    "STBIF",
    "Constant",
    "Encoding",
    "Even",
    "Pulse",
    "Shares",
    "SpikingNetwork",
    "check_qann",
    "encoding_text",
    "membrane_step",
    "parse_encoding",
    "spike",
]
