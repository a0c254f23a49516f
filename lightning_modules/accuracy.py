"""Accuracy, counted on the device in few operations."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Accuracy(Metric):
    """Correctly classified images over all images, of all processes; 0 if there are none."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("correct", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, correct: Tensor) -> None:
        """Count images.

        Args:
            correct: ``(N,)``, bool, True where an image is classified correctly.
        """
        # Out of place: counts that were reset in inference mode can't be changed in place outside of it.
        self.correct = self.correct + correct.sum()
        self.total = self.total + len(correct)

    def compute(self) -> Tensor:
        """Return the accuracy, in [0, 1]."""
        return self.correct.float() / self.total.clamp(min=1).float()
