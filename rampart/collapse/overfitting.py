"""Detection of catastrophic overfitting: the network is robust to the training attack alone."""

from dataclasses import dataclass, field
from statistics import median

from rampart.collapse.signs import Signs

HISTORY = 40
"""Number of measurements that are the recent history."""

RECENT = 5
"""Number of measurements that are compared with the history."""

FALL = 0.5
"""Share of its history below which the alignment has fallen."""

LOW = 0.1
"""Alignment below which the loss hardly rises along the perturbation any more."""

LOST = 1 / 3
"""Share of the held-out images robust to the training attack that a stronger attack fools."""

FEWEST = 6
"""Number of such images below which the share of two checks means nothing."""

FEWEST_DOUBTED = 4
"""Number of such images from which one check needs another one."""

SUSPICIOUS = 0.75
"""Share of its history below which the alignment asks for an early check."""

NEW_LOW = 0.9
"""Share of its last low below which the alignment is at a new low."""


@dataclass
class Overfitting:
    """Find catastrophic overfitting, by the alignment of training steps and by accuracies of held-out images.

    As eps rises, the alignment falls slowly in every training. A sudden fall to nearly 0 is reported, and so is a
    third of the images robust to the training attack that a stronger attack fools.

    The fields are the state.

    Attributes:
        active: True from a finding by the alignment until it is normal again.
        gap_active: True from a finding by held-out checks until a check finds nothing.
        found: True if the latest check needs another one.
        last_check: Arguments of the latest check.
        suspicious: True if the alignment has fallen so far that a check is needed.
        low: True if the latest measurement is a new low of the averaged alignment, after its peak.
        lowest: Average at the last low; before the first low, the peak.
        fallen_once: True from the first low on.
        alignments: Latest alignments.
    """

    active: bool = False
    gap_active: bool = False
    found: bool = False
    last_check: list[int] = field(default_factory=lambda: [0, 0, 0])
    suspicious: bool = False
    low: bool = False
    lowest: float = 0.0
    fallen_once: bool = False
    alignments: list[float] = field(default_factory=list)

    def update(self, signs: Signs) -> str | None:
        """Add a measurement, and return a finding in words; None if there is none, or if it has been reported.

        Args:
            signs: Signs of the step.
        """
        if signs.alignment is None:
            return None
        self.alignments = [*self.alignments, signs.alignment][-HISTORY - RECENT :]
        history, recent = self.alignments[:-RECENT], self.alignments[-RECENT:]
        self._follow_lows(sum(recent) / RECENT if len(recent) == RECENT else 0.0)
        if len(history) < 2 * RECENT:
            return None
        before, now = median(history), sum(recent) / RECENT
        fallen = now < min(LOW, FALL * before)
        self.suspicious = now < SUSPICIOUS * before
        if self.active or not fallen:
            self.active &= now < 2 * LOW
            return None
        self.active = True
        return f"the alignment of the perturbations with the input gradient has fallen from {before:.2f} to {now:.2f}"

    def _follow_lows(self, average: float) -> None:
        """Set :attr:`low` if the average is a tenth lower than at the last low."""
        self.low = average < NEW_LOW * self.lowest
        if self.low or (average > self.lowest and not self.fallen_once):
            self.lowest = average
        self.fallen_once |= self.low

    def check(self, images: int, robust: int, lost: int) -> str | None:
        """Add a held-out check, and return a finding in words; None if there is none, or if it has been reported.

        A finding is that of two checks in a row together, since one may have few images.

        Args:
            images: Number of images.
            robust: Number of these that are correctly classified under the training attack.
            lost: Number of the robust ones that a stronger attack fools.
        """
        last, self.last_check = self.last_check, [images, robust, lost]
        self.found = lost >= max(FEWEST_DOUBTED, LOST * robust)
        images, robust, lost = (old + new for old, new in zip(last, self.last_check, strict=True))
        overfits = last[0] > 0 and lost >= max(FEWEST, LOST * robust)
        if self.gap_active or not overfits:
            self.gap_active &= overfits
            return None
        self.gap_active = True
        return (
            f"of {images} held-out images {robust / images:.0%} are robust to the training attack, but "
            f"{(robust - lost) / images:.0%} to a stronger one"
        )
