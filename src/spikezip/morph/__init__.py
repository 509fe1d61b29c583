"""ANN -> SNN-friendly ANN: BatchNorm folded, attention spelled out, pooling, activations and residuals as asked."""

from spikezip.morph.choices import Activation, BatchNorm, Morph, Pooling, Residual
from spikezip.morph.rules import RULES, Rule, morph

__all__ = ["RULES", "Activation", "BatchNorm", "Morph", "Pooling", "Residual", "Rule", "morph"]
