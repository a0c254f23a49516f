"""Figures of adversarial images during training."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.outputs import save_figure, warn_if_not_drawn
from rampart.attacks.context import attack_context
from rampart.attacks.logits import compute_logits
from rampart.attacks.random import make_generator
from rampart.evaluation import adversarial_figure, can_be_drawn


class AdversarialImagesCallback(Callback):
    """Log clean images, adversarial images and their differences to TensorBoard and as PNG files.

    Shows the first validation images, or the first training batch if there is no validation set, under the validation
    attack at the target eps. Only images with one or three channels are drawn. An error in drawing becomes a warning.

    Args:
        num_images: Number of images, one per column; 0 turns the figure off.
        every_n_epochs: Draw a figure every this many epochs, and one at the end of training.
    """

    def __init__(self, num_images: int = 8, every_n_epochs: int = 5) -> None:
        if num_images < 0 or every_n_epochs < 1:
            raise ValueError(
                f"images.num_images must be at least 0 and images.every_n_epochs at least 1, got {num_images} and "
                f"{every_n_epochs}"
            )
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self._examples: tuple[Tensor, Tensor] | None = None
        self._drawn_at = -1
        self._reported = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the images of an earlier run."""
        if stage == "fit":
            self._examples, self._drawn_at = None, -1

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first validation images."""
        if trainer.state.fn == "fit" and batch_idx == 0:
            self._keep_examples(batch, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the first training images if there is no validation set."""
        if self._examples is None:
            self._keep_examples(batch, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw a figure every ``every_n_epochs`` epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last figure, also if training ended within an epoch."""
        if trainer.global_step != self._drawn_at:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _keep_examples(self, batch: Any, module: Any) -> None:
        images, labels, _ = module.read_batch(batch)
        assert labels is not None
        self._examples = images[: self.num_images], labels[: self.num_images]

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        if self.num_images == 0 or self._examples is None or not trainer.is_global_zero:
            return
        self._drawn_at = trainer.global_step
        module: Any = pl_module
        images, labels = self._examples
        if not can_be_drawn(images):
            if not self._reported:
                print(
                    f"Adversarial images are not drawn: shape {tuple(images.shape[1:])} does not have 1 or 3 channels."
                )
            self._reported = True
            return
        with warn_if_not_drawn("the adversarial images"), module.execution.evaluation(images.device.type):
            generator = make_generator(images.device, "adversarial images")
            network = module.evaluated_network
            adv = module.val_attack(network, images, labels, module.target_eps, generator=generator)
            with attack_context(network, "eval", images.device.type), torch.no_grad():
                images, labels = images.clone(), labels.clone()
                clean_classes, adv_classes = (compute_logits(network, shown).argmax(1) for shown in (images, adv))
            figure = adversarial_figure(images, adv, labels, clean_classes, adv_classes, module.target_eps)
            save_figure(trainer, "adversarial_images", figure, name=f"adversarial_images_epoch{epochs:03d}")
