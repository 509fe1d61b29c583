"""Networks as values: capture by torch.export, stages and what they know, kinds of operations."""

from spikezip.graph.capture import capture
from spikezip.graph.network import Info, InputSpec, Spec, Stage, describe, info, origin

__all__ = ["Info", "InputSpec", "Spec", "Stage", "capture", "describe", "info", "origin"]
