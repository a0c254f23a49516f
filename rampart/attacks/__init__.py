"""Attacks on any network, with torch alone: ``attack(model, images, labels, eps=...) -> images``."""

from rampart.attacks.apgd import APGD
from rampart.attacks.attack import Attack, NamedAttack, attack_active
from rampart.attacks.eps import Eps, parse_eps
from rampart.attacks.fab import FAB
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
    "Eps",
    "Level",
    "Linf",
    "NamedAttack",
    "Norm",
    "Square",
    "Start",
    "Uniform",
    "attack_active",
    "parse_eps",
]
