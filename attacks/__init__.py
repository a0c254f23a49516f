"""Attacks on any network, with torch alone: ``attack(model, images, labels, eps=...) -> images``."""

from attacks.apgd import APGD
from attacks.attack import Attack, NamedAttack, attack_active
from attacks.eps import Eps, parse_eps
from attacks.fab import FAB
from attacks.mixed import MixedPGD
from attacks.norms import L2, NORMS, Linf, Norm
from attacks.pgd import PGD
from attacks.square import Square

__all__ = [
    "APGD",
    "FAB",
    "L2",
    "NORMS",
    "PGD",
    "Attack",
    "Eps",
    "Linf",
    "MixedPGD",
    "NamedAttack",
    "Norm",
    "Square",
    "attack_active",
    "parse_eps",
]
