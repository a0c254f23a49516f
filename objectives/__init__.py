"""Training objectives, with torch alone."""

from objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput
from objectives.mtl_ibp import MTLIBP
from objectives.trades import TRADES

__all__ = ["MTLIBP", "TRADES", "AdversarialTraining", "Objective", "ObjectiveOutput"]
