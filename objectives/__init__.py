"""Training objectives, with torch alone."""

from objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput
from objectives.trades import TRADES

__all__ = ["TRADES", "AdversarialTraining", "Objective", "ObjectiveOutput"]
