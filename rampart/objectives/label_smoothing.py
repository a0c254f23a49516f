"""Label smoothing with random shares of the wrong classes."""

import torch
from torch import Tensor, nn


class RandomLabelSmoothing(nn.Module):
    """Mean cross-entropy whose target gives the wrong classes random shares, drawn anew for each image and batch.

    The label has the probability ``1 - smoothing``; the wrong classes share the rest in proportion to uniform random
    numbers (the non-uniform label smoothing of LIET, ICCV 2025, which uses 0.4 on CIFAR-10). With equal shares of all
    classes, use ``torch.nn.CrossEntropyLoss(label_smoothing=...)``. Random numbers come from torch's global generator,
    like dropout's, which ``fit`` seeds before each batch. It costs no further pass through the network.

    Args:
        smoothing: Probability of the wrong classes together, in [0, 1).

    Raises:
        ValueError: If smoothing is outside [0, 1).
    """

    def __init__(self, smoothing: float = 0.4) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        super().__init__()
        self.init_args = {"smoothing": smoothing}
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of logits ``(N, C)`` and labels ``(N,)``, int64, in [0, C)."""
        shares = torch.rand_like(logits).scatter(1, labels[:, None], 0.0)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
        target = (self.smoothing * shares).scatter(1, labels[:, None], 1 - self.smoothing)
        return nn.functional.cross_entropy(logits, target)
