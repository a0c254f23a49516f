"""Training objectives, with torch alone: functions of a network, a batch and an attack that training minimises."""

from rampart.objectives.adversarial_training import AdversarialTraining, Objective, ObjectiveOutput
from rampart.objectives.awp import AWP
from rampart.objectives.crown_ibp import CROWNIBP
from rampart.objectives.ibp import IBP
from rampart.objectives.label_smoothing import RandomLabelSmoothing
from rampart.objectives.mtl_ibp import MTLIBP
from rampart.objectives.sabr import SABR
from rampart.objectives.trades import TRADES

__all__ = [
    "AWP",
    "CROWNIBP",
    "IBP",
    "MTLIBP",
    "SABR",
    "TRADES",
    "AdversarialTraining",
    "Objective",
    "ObjectiveOutput",
    "RandomLabelSmoothing",
]
