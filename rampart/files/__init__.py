"""Reading and writing weights, and the provenance of results, without Lightning."""

from rampart.files.export import export_network
from rampart.files.provenance import fingerprint, provenance
from rampart.files.weights import LoadedWeights, load_weights
from rampart.files.whole_file import write_whole

__all__ = ["LoadedWeights", "export_network", "fingerprint", "load_weights", "provenance", "write_whole"]
