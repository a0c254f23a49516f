"""Attacks on any network, with torch alone: ``attack(model, images, labels, eps=...) -> images``."""

from attacks.attack import Attack, NamedAttack
from attacks.eps import Eps, parse_eps
from attacks.mixed import MixedPGD
from attacks.norms import L2, NORMS, Linf, Norm
from attacks.pgd import PGD

__all__ = ["L2", "NORMS", "PGD", "Attack", "Eps", "Linf", "MixedPGD", "NamedAttack", "Norm", "parse_eps"]
