"""Attacks on any network, with torch alone.

An attack is immutable settings; its call returns adversarial images::

    attack = PGD(steps=40, relative_step_size=0.05)
    adv = attack(network, images, labels, eps=0.3)  # images (N, C, H, W) in [0, 1], labels (N,)
    robust = network(adv).argmax(1) == labels
"""

from rampart.attacks.apgd import APGD
from rampart.attacks.attack import Attack, NamedAttack, attack_active
from rampart.attacks.context import Model
from rampart.attacks.ensemble import Ensemble
from rampart.attacks.eps import Eps, NormName, format_eps, parse_eps
from rampart.attacks.fab import FAB
from rampart.attacks.losses import AttackLoss, LossName
from rampart.attacks.norms import L2, NORMS, Linf, Norm
from rampart.attacks.pgd import PGD
from rampart.attacks.square import Square
from rampart.attacks.starts import AtImage, Level, Start, Uniform

__all__ = [
    "APGD",
    "FAB",
    "L2",
    "NORMS",
    "PGD",
    "AtImage",
    "Attack",
    "AttackLoss",
    "Ensemble",
    "Eps",
    "Level",
    "Linf",
    "LossName",
    "Model",
    "NamedAttack",
    "Norm",
    "NormName",
    "Square",
    "Start",
    "Uniform",
    "attack_active",
    "format_eps",
    "parse_eps",
]
