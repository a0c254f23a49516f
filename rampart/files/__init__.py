"""Weights in and out, and the origin of numbers, with torch alone."""

from rampart.files.export import export_network
from rampart.files.provenance import fingerprint, provenance
from rampart.files.weights import LoadedWeights, load_weights

__all__ = ["LoadedWeights", "export_network", "fingerprint", "load_weights", "provenance"]
