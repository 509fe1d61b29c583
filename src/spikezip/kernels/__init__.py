"""The scan of a layer's neurons over time; nothing above knows which implementation ran."""

from spikezip.kernels.scan import Scan, scan

__all__ = ["Scan", "scan"]
