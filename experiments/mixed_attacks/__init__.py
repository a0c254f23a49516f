"""Attacks for training that vary from batch to batch, and attacks that move blocks of pixels."""

from experiments.mixed_attacks.blocks import BlockPGD
from experiments.mixed_attacks.mixed import MixedPGD

__all__ = ["BlockPGD", "MixedPGD"]
