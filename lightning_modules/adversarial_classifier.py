"""The adversarial training, validation and test steps, for any network, attack, objective and optimizer."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from attacks import PGD, Attack, Eps, NamedAttack, parse_eps
from attacks.checks import check_labels
from attacks.draws import agree_on_run_seed, generator_for, resume_run_seed, run_seed
from networks.gates import plain_form
from networks.weights import LIGHTNING_KEY, check_match, network_weights
from objectives import AdversarialTraining, Objective

Batch: TypeAlias = Sequence[Tensor]
OptimizerFactory: TypeAlias = Callable[[Any], Optimizer]
SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]


class AdversarialClassifier(LightningModule):
    """Train, validate and test an image classifier under attack.

    A batch is ``(images, labels)`` or ``(images, labels, index)``: images ``(N, C, H, W)``, float, in [0, 1];
    labels ``(N,)``, int64; index ``(N,)``, each image's place in its set.

    Args:
        network: Images in [0, 1] to logits ``(N, classes)``; normalisation is its first layer.
        eps: Target radius on the pixel scale, such as ``0.4`` or ``"8/255"``: what validation attacks at and,
            unless a ramp sets another, training too.
        attack: The attack of training; PGD with 40 steps if None.
        val_attack: The attack of validation, at the target eps; PGD with 20 steps if None.
        test_attacks: The rows of the test table; the validation attack at the target eps if None. ``predict``
            uses the last.
        objective: What training minimises; the adversarial loss if None.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning rate's schedule from the optimizer, if any.
        lr_interval: Whether the schedule advances after each optimizer step or each epoch.

    Attributes:
        eps: Radius of the next training batch; an epsilon ramp sets it.
        target_eps: The fixed radius of validation.
        attack: Attack of the next training batch; an epsilon ramp may set it.

    Raises:
        ValueError: If eps is out of the norm's range, validation's norm is not training's, or two test attacks have
            one name.
    """

    def __init__(
        self,
        network: nn.Module,
        eps: Eps,
        attack: Attack | None = None,
        val_attack: Attack | None = None,
        test_attacks: tuple[NamedAttack, ...] | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerFactory = Adam,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: Literal["step", "epoch"] = "step",
    ) -> None:
        super().__init__()
        self.network = network
        self.attack = attack or PGD()
        self.target_eps = self.eps = parse_eps(eps, self.attack.norm, "model.eps")
        self.val_attack = val_attack or PGD(norm=self.attack.norm, steps=20)
        if self.val_attack.norm != self.attack.norm:
            raise ValueError(
                f"model.val_attack must have the norm of model.attack, {self.attack.norm}, for eps to be one size; "
                f"got {self.val_attack.norm}"
            )
        self.test_attacks = [NamedAttack(self.val_attack, eps)] if test_attacks is None else list(test_attacks)
        names = [named.name for named in self.test_attacks]
        if len(set(names)) < len(names):
            raise ValueError(f"model.test_attacks must have distinct names, got {', '.join(names)}: give `name:`")
        self.objective = objective or AdversarialTraining()
        self._optimizer, self._lr_scheduler, self._lr_interval = optimizer, lr_scheduler, lr_interval
        self.train_adv_acc = _accuracy()
        self.val_clean_acc = _accuracy()
        self.val_robust_acc = _accuracy()
        self.test_clean_acc = _accuracy()
        self.test_robust_acc = nn.ModuleList(_accuracy() for _ in self.test_attacks)

    def setup(self, stage: str) -> None:
        """Agree on the run's seed; refuse, before training, an objective that can't work with what it is given.

        Raises:
            TypeError: If the attack or a layer of the network is of a kind that the objective can't use.
            ValueError: If one of their settings is, or the trainer's.
        """
        agree_on_run_seed(self.trainer)
        if stage != "fit":
            return
        if self.trainer.accumulate_grad_batches < 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches must be at least 1, got {self.trainer.accumulate_grad_batches}"
            )
        self.objective.check(self.attack, self.network)
        batches = _most_accumulated(self.trainer)
        if batches > 1 and not self.objective.accumulates:
            raise ValueError(
                f"{self.objective} can't sum the gradients of several batches: set trainer.accumulate_grad_batches to "
                f"1, got {batches}"
            )

    @property
    def run_seed(self) -> int:
        """The seed of the run that the module is in, the same in all processes: see :mod:`attacks.draws`."""
        return run_seed(self._trainer)

    @property
    def judged_network(self) -> nn.Module:
        """The network in the form that others attack, which validation, test and predict do: see `plain_form`."""
        return plain_form(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, classes)`` for images ``(N, C, H, W)``, float, in [0, 1]."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Attack the batch at the current eps and return the objective's loss."""
        images, labels = batch[0], batch[1]
        generator = self._generator("train", self.trainer.global_step, batch_idx)
        output = self.objective(self.network, images, labels, self.attack, self.eps, generator)
        self.train_adv_acc.update(output.logits.argmax(1), labels)
        # Numbers go in as tensors on the host: Lightning would send them to the device and wait for it.
        self.log("train/eps", torch.tensor(self.eps), prog_bar=True, on_step=True, on_epoch=False)
        # Of rank 0: the mean over ranks would cost a collective at every step.
        adv_loss = output.parts.get("adv_loss", output.loss).detach()
        self.log("train/adv_loss", adv_loss, prog_bar=True, on_step=True, on_epoch=False)
        self.log("train/adv_acc", self.train_adv_acc, prog_bar=True, on_step=False, on_epoch=True)
        lr = torch.as_tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("train/lr", lr, on_step=True, on_epoch=False)
        for name, value in {"loss": output.loss, **output.parts}.items():
            if name != "adv_loss":
                self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=False)
        return output.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure clean accuracy and, at the target eps, robust accuracy: right both as it is and under attack."""
        images, labels = batch[0], batch[1]
        named = NamedAttack(self.val_attack, self.target_eps)
        clean = self._classes(images, labels)
        self.val_clean_acc.update(clean, labels)
        self.val_robust_acc.update(self._classes_under(named, images, labels, clean, "val", batch_idx), labels)
        self.log("val/clean_acc", self.val_clean_acc, prog_bar=True)
        self.log("val/robust_acc", self.val_robust_acc, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure clean accuracy and, under each test attack, robust accuracy: right both as it is and attacked."""
        images, labels = batch[0], batch[1]
        clean = self._classes(images, labels)
        self.test_clean_acc.update(clean, labels)
        self.log("test/clean_acc", self.test_clean_acc)
        for named, metric in zip(self.test_attacks, self.test_robust_acc, strict=True):
            assert isinstance(metric, Metric)
            metric.update(self._classes_under(named, images, labels, clean, "test", batch_idx), labels)
            self.log(f"test/robust_acc/{named.name}", metric)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Answer clean and adversarial images.

        The attack is the last of ``test_attacks``, or validation's where there are none. Images without labels
        are attacked away from the clean answer.

        Returns:
            Tensors ``(N,)``: ``label`` and ``index`` where the batch has them, ``clean_prediction``,
            ``clean_confidence``, ``adv_prediction``, ``adv_confidence``; a confidence is the predicted class's
            probability.
        """
        images = batch[0]
        network = self.judged_network
        clean = network(images).softmax(1).max(1)
        labels = batch[1] if len(batch) > 1 else clean.indices
        named = self.test_attacks[-1] if self.test_attacks else NamedAttack(self.val_attack, self.target_eps)
        generator = self._generator("predict", batch_idx)
        adv = network(named(network, images, labels, generator=generator)).softmax(1).max(1)
        known = dict(zip(("label", "index"), batch[1:3], strict=False))
        return known | {
            "clean_prediction": clean.indices,
            "clean_confidence": clean.values,
            "adv_prediction": adv.indices,
            "adv_confidence": adv.values,
        }

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and, if there is one, the learning rate's schedule."""
        optimizer = self._optimizer(self.network.parameters())
        if self._lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._lr_scheduler(optimizer), "interval": self._lr_interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}  # type: ignore[return-value]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture in one line that names the tensors.

        Raises:
            ValueError: If the checkpoint's network differs from this one in names or shapes.
        """
        checkpoint.setdefault(LIGHTNING_KEY, "")
        check_match(self.network, network_weights(checkpoint), "the checkpoint")
        resume_run_seed(self._trainer, checkpoint.get("run_seed"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's seed, so that a resumed run repeats what the uninterrupted one would do."""
        checkpoint["run_seed"] = self.run_seed

    def _classes(self, images: Tensor, labels: Tensor) -> Tensor:
        # Checked here too, for attacks that do not look at the labels.
        logits = self.judged_network(images)
        check_labels(labels, logits)
        classes: Tensor = logits.argmax(1)
        return classes

    def _classes_under(
        self, named: NamedAttack, images: Tensor, labels: Tensor, clean: Tensor, stage: str, batch_idx: int
    ) -> Tensor:
        """Classes under attack; an image that is answered wrongly as it is counts as fooled and is not attacked."""
        standing = clean == labels
        classes = clean.clone()
        if bool(standing.any()):  # Not every network takes an empty batch.
            images, labels = images[standing], labels[standing]
            adv = named(self.judged_network, images, labels, generator=self._generator(stage, batch_idx))
            classes[standing] = self._classes(adv, labels)
        return classes

    def _generator(self, stage: str, *state: int) -> torch.Generator:
        """Return random numbers that depend on stage, seed, rank and progress alone."""
        return generator_for(self.device, stage, self.run_seed, self.global_rank, *state)


def _most_accumulated(trainer: Trainer) -> int:
    """Number of batches between two updates, the largest of the run."""
    schedules = [c.scheduling for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    return max(trainer.accumulate_grad_batches, *(max(schedule.values()) for schedule in schedules), 1)


def _accuracy() -> MulticlassAccuracy:
    # Predictions and labels are checked where they arise; the metric's own checks would copy them to the host.
    return MulticlassAccuracy(average="micro", validate_args=False)
