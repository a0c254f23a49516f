"""Hooks for showing the progress of a search."""

from rampart.evaluation.results import WorstCase


class ProgressListener:
    """Base class of progress displays. A search calls its hooks, which do nothing here."""

    def on_images_checked(self, images: int) -> None:
        """Called during the first pass, before any attack.

        Args:
            images: Number of images checked so far.
        """

    def on_stage_start(self, batch: int, attack: int, eps: float, robust: int, size: int) -> None:
        """Called before an attack runs on a batch.

        Args:
            batch: Zero-based number of the batch.
            attack: Zero-based number of the attack.
            eps: Pixel scale.
            robust: Number of images to attack, which are still correctly classified.
            size: Number of images in the batch.
        """

    def on_certify(self, batch: int) -> None:
        """Called before the images of a batch are certified, after all attacks.

        Args:
            batch: Zero-based number of the batch.
        """

    def on_batch_end(self, batch: int, part: WorstCase) -> None:
        """Called after all attacks on a batch, computed now or read from the cache.

        Args:
            batch: Zero-based number of the batch.
            part: Results of the batch.
        """

    def on_wait_for_others(self, batches: int) -> None:
        """Called once if other processes are computing all remaining batches.

        Args:
            batches: Number of remaining batches.
        """
