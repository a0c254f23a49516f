"""Training objectives, with torch alone."""

from objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput

__all__ = ["AdversarialTraining", "Objective", "ObjectiveOutput"]
