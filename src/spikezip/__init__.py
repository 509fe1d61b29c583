"""spikezip: trained networks in, certified spiking neural networks out."""

__version__ = "0.1.0"
