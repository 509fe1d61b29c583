"""SNN -> others: a bundle that is one safe file."""

from spikezip.export.bundle import load_bundle, load_network, load_snn, save_bundle

__all__ = ["load_bundle", "load_network", "load_snn", "save_bundle"]
