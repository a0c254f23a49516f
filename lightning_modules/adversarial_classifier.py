"""LightningModule for adversarial training with any network, attack, objective and optimizer."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from lightning_modules.accuracy import Accuracy
from lightning_modules.evaluation_steps import EvaluationSteps
from lightning_modules.extra_tensors import match_extra_tensors, register_tensors
from lightning_modules.finite_loss import FiniteLossCheck
from lightning_modules.loaders import check_one_loader, warn_about_stream
from lightning_modules.lr_schedules import Interval, LRSchedules, SchedulerFactories, check_schedules
from lightning_modules.optimizer_steps import OptimizerSteps
from lightning_modules.optimizers import OptimizerFactory
from lightning_modules.saved_settings import build_module, describe_settings
from lightning_modules.step_values import TrainingStep, hide_from_bar, log_step
from lightning_modules.trainer_checks import check_accumulation
from rampart.attacks import PGD, Attack, Eps, NamedAttack, parse_eps
from rampart.attacks.random import make_shared_generator, resume_run_seed
from rampart.attacks.validation import checked_images
from rampart.data import Batch
from rampart.files.weight_files import read_checkpoint
from rampart.files.weights import LIGHTNING_KEY, check_match, network_weights
from rampart.kernels import lay_out_state
from rampart.objectives import AdversarialTraining, Objective

SHOWN = ("train/eps", "train/adv_loss")
"""Values of a training step that the progress bar shows."""


class AdversarialClassifier(OptimizerSteps, EvaluationSteps):
    """Train, validate and test an image classifier under attack.

    :class:`EvaluationSteps` has validation, test and prediction, :class:`OptimizerSteps` the learning rate. A subclass
    that overrides ``default_eps``, :meth:`default_network` or :meth:`default_test_attacks` is a preset, such as
    :class:`MNISTClassifier`.

    A batch is ``(images, labels)`` or ``(images, labels, index)``: images ``(N, C, H, W)``, float, in [0, 1];
    labels ``(N,)``, int64; index ``(N,)``, each image's position in its set. Other accepted forms are listed by
    :func:`rampart.data.batch.read_batch`. Training runs in the trainer's precision, everything else in float32.

    The attributes ``eps`` and ``attack`` are those of the next training batch: an epsilon ramp sets them before it.
    Validation is not affected, it always attacks at ``target_eps``.

    Args:
        network: Maps images in [0, 1] to logits ``(N, classes)``; normalisation is its first layer. The preset's if
            None, such as the paper's MNIST CNN of MNISTClassifier; required by AdversarialClassifier.
        eps: Target radius on the pixel scale, such as ``0.4`` or ``"8/255"``: validation attacks at it, and so does
            training unless a ramp sets another. The preset's if None, such as 0.4 of MNISTClassifier; required by
            AdversarialClassifier.
        attack: Training attack; PGD with 40 steps if None.
        val_attack: Validation attack, at the target eps; PGD with 20 steps if None.
        test_attacks: Rows of the test table; ``predict`` uses the last. The preset's if None, such as PGD-200 at 0.3
            and 0.4 of MNISTClassifier, or else the validation attack at the target eps.
        objective: Training loss of a batch, which calls the attack; the cross-entropy of adversarial images if None.
        optimizer: Function that builds the optimizer from the parameters.
        decay_norm_and_bias: Apply weight decay to all parameters; False spares biases and the parameters of BatchNorm.
        lr_scheduler: Function that builds the learning-rate schedule from the optimizer, or several functions. Their
            schedules apply at the same time, or one after the other if there are milestones. A length
            (``total_steps``, ``T_max``, ``total_iters``) of -1 is replaced by the length of the run.
        lr_interval: Interval at which the schedule advances: after each optimizer step or each epoch.
        lr_milestones: Ends of all schedules but the last, if they apply one after the other: whole numbers of steps or
            epochs, depending on lr_interval, or fractions of the run below 1, such as ``(0.05,)`` for the end of a
            warm-up.
        lr_monitor: Metric that ReduceLROnPlateau watches after each epoch with validation, such as ``val/robust_acc``.
        certify: Measure certified accuracy too, at the target eps in validation and at each l-inf eps of the test
            attacks: ``val/certified_acc``, ``test/certified_acc/0.4``. None: if the objective trains for it.

    Raises:
        ValueError: If network or eps is not given and the class has no default, eps is out of the norm's range, the
            validation attack's norm is not the training attack's, or two test attacks have the same name.
    """

    default_eps: Eps | None = None
    """The eps for ``eps=None``; None if it must be given."""

    network_settings: dict[str, Any] | None = None
    """Class path and arguments of the network in a config, set by the command line; None: the network is described."""

    ends_at_nonfinite_loss: bool = True
    """End training at a loss that is NaN or infinite; a guard that recovers from it sets this to False."""

    last_step: TrainingStep | None = None
    """Values of the last training step; with gradients of several batches, on the last of these batches."""

    def __init__(
        self,
        network: nn.Module | None = None,
        eps: Eps | None = None,
        attack: Attack | None = None,
        val_attack: Attack | None = None,
        test_attacks: tuple[NamedAttack, ...] | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerFactory = Adam,
        decay_norm_and_bias: bool = True,
        lr_scheduler: SchedulerFactories = None,
        lr_interval: Interval = "step",
        lr_milestones: tuple[int | float, ...] | None = None,
        lr_monitor: str | None = None,
        certify: bool | None = None,
    ) -> None:
        eps = self.default_eps if eps is None else eps
        if eps is None:
            raise ValueError(f"model.eps must be given, such as 0.4 or 8/255: {type(self).__name__} has no default")
        attack = attack or PGD()
        target_eps = parse_eps(eps, attack.norm, "model.eps")
        val_attack = val_attack or PGD(norm=attack.norm, steps=20)
        if val_attack.norm != attack.norm:
            raise ValueError(
                f"model.val_attack must have the norm of model.attack, {attack.norm}, because eps is in that norm; "
                f"got {val_attack.norm}"
            )
        if test_attacks is None:
            test_attacks = self.default_test_attacks() or (NamedAttack(val_attack, eps),)
        network, objective = self.default_network() if network is None else network, objective or AdversarialTraining()
        measured = certify if objective.certifies else bool(certify)
        super().__init__(network, val_attack, target_eps, test_attacks, measured)
        self.attack, self.eps, self.objective = attack, target_eps, objective
        attacks = {"attack": attack, "val_attack": val_attack, "test_attacks": self.test_attacks}
        self.extra_tensors = register_tensors(self, objective=self.objective, **attacks)
        others = {
            "eps": eps,
            "objective": self.objective,
            "optimizer": optimizer,
            "decay_norm_and_bias": decay_norm_and_bias,
            "lr_scheduler": lr_scheduler,
            "lr_interval": lr_interval,
            "lr_milestones": lr_milestones,
            "lr_monitor": lr_monitor,
            "certify": certify,
        }
        self._settings = describe_settings(others | attacks)
        schedules = LRSchedules(lr_scheduler, lr_interval, lr_milestones, lr_monitor)
        self.set_optimizer(optimizer, decay_norm_and_bias, schedules)
        self.train_adv_acc, self._losses = Accuracy(), FiniteLossCheck()

    @classmethod
    def default_network(cls) -> nn.Module:
        """Return a new network for ``network=None``; a preset overrides it.

        Raises:
            ValueError: If the class has no default network.
        """
        raise ValueError(
            f"model.network must be given, such as rampart.networks.ResNet18: {cls.__name__} has no default"
        )

    @classmethod
    def default_test_attacks(cls) -> tuple[NamedAttack, ...]:
        """Return the attacks for ``test_attacks=None``; empty for the validation attack at the target eps."""
        return ()

    @property
    def selection_metric(self) -> str:
        """Metric that chooses the best checkpoint if none is set: certified accuracy if the objective trains for it."""
        certified = self.objective.certifies and self.certify is not False and self.attack.norm == "Linf"
        return "val/certified_acc" if certified else "val/robust_acc"

    def setup(self, stage: str) -> None:
        """Prepare evaluations, see :meth:`EvaluationSteps.setup`, and refuse settings that can't be combined.

        Raises:
            TypeError: If the objective can't use the class of the attack or of a layer.
            ValueError: If the objective can't use one of their settings, or a setting of the trainer is refused.
        """
        super().setup(stage)
        if stage == "fit":
            self.objective.check(self.attack, self.network)
            check_accumulation(self.trainer, self.objective)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Attack the batch at the current eps and return the objective's loss.

        Raises:
            ValueError: If the batch has none of the accepted forms, or the loss is NaN or infinite.
        """
        images, labels, _ = self.read_batch(batch)
        assert labels is not None
        key = self.run_seed, 0, self.trainer.global_step, batch_idx
        generator = make_shared_generator(self.device, self.global_rank, self.trainer.world_size, "train", *key)
        # A batch that has this form already was not looked at.
        checked = nullcontext() if isinstance(batch, Batch) else checked_images(images)
        with self.execution.training(self.device.type), checked:
            output = self.objective(self.network, images, labels, self.attack, self.eps, generator)
        self._losses.add(output.loss, self.eps, self.trainer, self.network)
        self.last_step = TrainingStep(images, labels, output.logits.detach(), self.eps)
        self.train_adv_acc.update(output.logits.argmax(1) == labels)
        # Rank 0's values: the mean over ranks would need a collective at every step. Numbers are tensors on the host:
        # Lightning would copy floats to the device and wait for it.
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        values = {
            "train/eps": torch.tensor(self.eps),
            "train/adv_loss": output.loss,
            "train/lr": lr.clone() if isinstance(lr, Tensor) else torch.tensor(lr),
            "train/loss": output.loss,
            **{f"train/{name}": value for name, value in output.parts.items()},
        }
        log_step(self, values, SHOWN, {"train/adv_acc": self.train_adv_acc})
        return output.loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Spare the host from waiting for the values of this step."""
        hide_from_bar(self, SHOWN)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of the loss, in the same precision as the training step."""
        with self.execution.training(self.device.type):
            super().backward(loss, *args, **kwargs)

    def on_train_start(self) -> None:
        """Refuse several loaders and unsuitable schedules, and prepare the state of the training.

        Raises:
            ValueError: If there are several loaders, or a learning-rate schedule does not suit the run.
        """
        check_schedules(self.trainer)
        check_one_loader(self.trainer.train_dataloader, "train", unpacked=False)
        check_one_loader(self.trainer.val_dataloaders, "val")
        warn_about_stream(self.trainer.train_dataloader, "train", self.trainer.world_size)
        self._losses = FiniteLossCheck(self.ends_at_nonfinite_loss)
        for optimizer in self.trainer.optimizers:  # A resumed run has the memory format of the checkpoint's.
            lay_out_state(optimizer)

    def on_train_epoch_end(self) -> None:
        """Check the losses that have not been checked yet.

        Raises:
            ValueError: If one is NaN or infinite.
        """
        self._losses.check_losses(self.trainer, self.network)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint's network has this one's tensors, and continue with its seed.

        Raises:
            ValueError: If tensors differ in names or shapes, or hold NaN; the message names them in one line.
        """
        checkpoint.setdefault(LIGHTNING_KEY, "")
        check_match(self.network, network_weights(checkpoint), "the checkpoint")
        match_extra_tensors(checkpoint, self.state_dict())
        resume_run_seed(self._trainer, checkpoint.get("run_seed"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's seed, so that a resumed run equals an uninterrupted one, and the module's settings.

        Raises:
            ValueError: If a loss or a weight is NaN or infinite; then no checkpoint is written.
        """
        self._losses.check_before_saving(self.trainer, self.network)
        checkpoint["run_seed"] = self.run_seed
        network = describe_settings({"network": self.network}) if self.network_settings is None else {}
        checkpoint["hyper_parameters"] = {
            **checkpoint.get("hyper_parameters", {}),
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "network": self.network_settings,
            **network,
            **self._settings,
        }

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # a plain class method
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str = "cpu",
        strict: bool = True,
        weights_only: bool | None = None,  # noqa: ARG003 - Lightning's argument
        **arguments: Any,
    ) -> Any:
        """Build a module with a checkpoint's settings and weights. No code that the file names is imported or run.

        Args:
            checkpoint_path: Checkpoint that training wrote.
            map_location: Device of the module.
            strict: Refuse a checkpoint with missing or additional tensors.
            weights_only: Ignored; files are always read with ``weights_only=True``.
            arguments: Constructor arguments that replace the checkpoint's.

        Returns:
            A module of the class that was trained if that is an imported subclass of this one, else of this class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no checkpoint, or does not describe an argument that is not given here.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        module = build_module(cls, checkpoint, arguments, checkpoint_path)
        assert isinstance(module, cls)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=strict)
        return module.to(map_location)
