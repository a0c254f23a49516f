"""Validation, test and predict steps. They compute in float32, count each image once and refuse non-finite logits."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lightning_modules.accuracy import Accuracy
from lightning_modules.certified_accuracy import can_certify, check_robust, list_linf_eps
from lightning_modules.loaders import SamplerPadding, check_num_classes, check_one_loader, find_order, warn_about_stream
from lightning_modules.trainer_checks import check_precision
from rampart.attacks import Attack, NamedAttack, format_eps
from rampart.attacks.logits import compute_logits
from rampart.attacks.random import agree_on_run_seed, make_generator, run_seed
from rampart.attacks.validation import check_finite, check_labels
from rampart.bounds import certified_mask
from rampart.bounds.certificates import METHODS, Method
from rampart.data import Batch, BatchPlace, EpochOrder, read_batch
from rampart.evaluation import robust_mask
from rampart.kernels import Execution, lay_out, lay_out_network
from rampart.kernels.network_state import list_modules, locate_weights
from rampart.networks import plain_form


class EvaluationSteps(LightningModule):
    """Validate, test and predict with an image classifier under attack; :class:`AdversarialClassifier` adds training.

    Args:
        network: Maps images in [0, 1] to logits ``(N, classes)``.
        val_attack: Validation attack.
        target_eps: Radius of the validation attack, on the pixel scale.
        test_attacks: Rows of the test table; ``predict`` uses the last, or the validation attack if there are none.
        certify: Measure certified accuracy too: validation at the target eps by interval bounds alone, test at each
            l-inf eps of the test attacks by all bounds. None: if the network has bounds in that norm.

    Raises:
        ValueError: If two test attacks have the same name.

    Attributes:
        certifies: True if certified accuracy is measured; known after :meth:`setup`.
    """

    certifies = False

    execution: Execution = Execution()
    """Options of execution; neither a hyper-parameter nor part of a checkpoint."""

    image_format: torch.memory_format | None = None
    """Memory format of images passed to the network, set before a run; None leaves them unchanged."""

    _order: EpochOrder | None = None

    def __init__(
        self,
        network: nn.Module,
        val_attack: Attack,
        target_eps: float,
        test_attacks: Sequence[NamedAttack],
        certify: bool | None = False,
    ) -> None:
        super().__init__()
        self.network, self.val_attack, self.target_eps = network, val_attack, target_eps
        self.test_attacks = list(test_attacks)
        names = [named.name for named in self.test_attacks]
        if len(set(names)) < len(names):
            raise ValueError(f"model.test_attacks must have distinct names, got {', '.join(names)}: give `name:`")
        self.val_clean_acc, self.val_robust_acc = Accuracy(), Accuracy()
        self.test_clean_acc = Accuracy()
        self.test_robust_acc = nn.ModuleList(Accuracy() for _ in self.test_attacks)
        self.certify, self.test_certified_eps = certify, list_linf_eps(self.test_attacks)
        self.val_certified_acc = Accuracy()
        self.test_certified_acc = nn.ModuleList(Accuracy() for _ in self.test_certified_eps)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the one that Lightning sets 40 times per step directly, without a search for parameters."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        """Agree on the run's seed between processes, set the memory format, and check what can't be evaluated.

        Raises:
            ValueError: If the trainer's precision rounds images, or certified accuracy is to be measured and can't be.
        """
        agree_on_run_seed(self.trainer)
        check_precision(self.trainer)
        device_type = self.trainer.strategy.root_device.type
        self.image_format = lay_out_network(self.network, self.execution.memory_format, device_type)
        self.certifies = self.certify is not False and can_certify(self.network, self.val_attack.norm, self.certify)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, classes)`` for images ``(N, C, H, W)``, float, in [0, 1]."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def run_seed(self) -> int:
        """Seed of the current run, the same in all processes; see :mod:`rampart.attacks.random`."""
        return run_seed(self._trainer)

    @property
    def evaluated_network(self) -> nn.Module:
        """Network that validation, test and predict attack, in its plain form (:func:`rampart.networks.plain_form`)."""
        plain = plain_form(self.network)
        if plain is self.network:
            return plain
        # The same object as long as it has the same weights and attributes, because recordings belong to an object.
        kept: nn.Module | None = self.__dict__.get("_plain")
        if kept is None or locate_weights(list_modules(kept)) != locate_weights(list_modules(plain)):
            kept = self.__dict__["_plain"] = plain  # not a submodule
        for module, mode in zip(kept.modules(), plain.modules(), strict=True):
            module.training = mode.training
        return kept

    @property
    def prediction_attack(self) -> NamedAttack:
        """Attack of predict: the last of the test attacks, or the validation attack if there are none."""
        return self.test_attacks[-1] if self.test_attacks else NamedAttack(self.val_attack, self.target_eps)

    @property
    def image_dtype(self) -> torch.dtype:
        """Dtype of the images passed to the network: float64 if its first weights are float64, else float32."""
        first = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
        return torch.float64 if first == torch.float64 else torch.float32

    def read_batch(self, batch: Any, labelled: bool = True) -> Batch:
        """Read a batch with images in the dtype and memory format of the network; see :func:`rampart.data.read_batch`.

        Args:
            batch: A batch in one of the accepted forms.
            labelled: Require labels.

        Raises:
            ValueError: If the batch has none of the accepted forms.
        """
        images, labels, index = read_batch(batch, labelled, self.image_dtype)
        return Batch(lay_out(images, self.image_format), labels, index)

    def on_validation_start(self) -> None:
        """Refuse several loaders, and reset the count of images.

        Raises:
            ValueError: If there are several loaders.
        """
        self._begin_evaluation(self.trainer.val_dataloaders, "val")

    def on_test_start(self) -> None:
        """See :meth:`on_validation_start`."""
        self._begin_evaluation(self.trainer.test_dataloaders, "test")

    def on_predict_start(self) -> None:
        """See :meth:`on_validation_start`."""
        self._begin_evaluation(self.trainer.predict_dataloaders, "predict")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure clean accuracy, and robust accuracy at the target eps (correct both clean and under the attack).

        If the module certifies, also certified accuracy at the target eps, by interval bounds.

        Raises:
            ValueError: If the batch has none of the accepted forms, logits are NaN or infinite, or a certified image is
                fooled.
        """
        named = NamedAttack(self.val_attack, self.target_eps)
        certified = [(self.target_eps, self.val_certified_acc)] if self.certifies else []
        self._evaluate(batch, "val", batch_idx, self.val_clean_acc, [(named, self.val_robust_acc)], certified)
        self.log("val/clean_acc", self.val_clean_acc, prog_bar=True)
        self.log("val/robust_acc", self.val_robust_acc, prog_bar=True)
        for _, metric in certified:
            self.log("val/certified_acc", metric, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Measure clean accuracy, and robust accuracy under each test attack (correct both clean and under the attack).

        If the module certifies, also certified accuracy at each l-inf eps of the test attacks.

        Returns:
            The batch without repeated images, a :class:`rampart.data.batch.Batch`.

        Raises:
            ValueError: If the batch has none of the accepted forms, logits are NaN or infinite, or a certified image is
                fooled.
        """
        metrics: Any = self.test_robust_acc
        robust = list(zip(self.test_attacks, metrics, strict=True))
        bounds: Any = self.test_certified_acc
        certified = list(zip(self.test_certified_eps, bounds, strict=True)) if self.certifies else []
        counted = self._evaluate(batch, "test", batch_idx, self.test_clean_acc, robust, certified)
        self.log("test/clean_acc", self.test_clean_acc)
        for named, metric in robust:
            self.log(f"test/robust_acc/{named.name}", metric)
        for eps, metric in certified:
            self.log(f"test/certified_acc/{format_eps(eps)}", metric)
        return counted

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predict classes of clean and adversarial images.

        The attack is the last of ``test_attacks``, or the validation attack if there are none. It attacks the clean
        predictions if the images have no labels.

        Returns:
            Tensors ``(N,)``: ``label`` and ``index``, int64, if the batch has them; ``clean_prediction`` and
            ``adv_prediction``, int64; ``clean_confidence`` and ``adv_confidence``, float, the predicted class's
            probability in [0, 1].

        Raises:
            ValueError: If the batch has none of the accepted forms, or logits are NaN or infinite.
        """
        images, known, index = self.read_batch(batch, labelled=False)
        with self.execution.evaluation(self.device.type):
            clean = self._logits(images, f"on batch {batch_idx} of predict").softmax(1).max(1)
            labels = clean.indices if known is None else known
            named = self.prediction_attack
            attacked = named(self.evaluated_network, images, labels, generator=self._generator("predict", batch_idx))
            adv = self._logits(attacked, f"under {named.name} on batch {batch_idx} of predict").softmax(1).max(1)
        given = {name: value for name, value in (("label", known), ("index", index)) if value is not None}
        return given | {
            "clean_prediction": clean.indices,
            "clean_confidence": clean.values,
            "adv_prediction": adv.indices,
            "adv_confidence": adv.values,
        }

    def locate_batch(self, batch_idx: int) -> BatchPlace:
        """Return the place of a batch of the current evaluation; see :meth:`rampart.data.EpochOrder.locate`.

        With a loader of its own order, such as a DataLoader, it is this process's rank and the batch's index.

        Args:
            batch_idx: Zero-based index of the batch in this process.
        """
        return BatchPlace(self.global_rank, batch_idx) if self._order is None else self._order.locate(batch_idx)

    def _begin_evaluation(self, loaders: Any, stage: str) -> None:
        check_one_loader(loaders, stage)
        warn_about_stream(loaders, stage, self.trainer.world_size)
        self._padding, self._order = SamplerPadding(loaders), find_order(loaders)

    def _evaluate(
        self,
        batch: Any,
        stage: str,
        batch_idx: int,
        clean: Accuracy,
        robust: Iterable[tuple[NamedAttack, Accuracy]],
        certified: Iterable[tuple[float, Accuracy]],
    ) -> Batch:
        """Count the correctly classified images of a batch, for each attack the robust, for each eps the certified."""
        images, labels, index = self.read_batch(batch)
        assert labels is not None
        kept = self._padding.count_unpadded(len(images))
        counted = Batch(images[:kept], labels[:kept], None if index is None else index[:kept])
        if kept == 0:
            return counted
        images, labels = counted.images, labels[:kept]
        with self.execution.evaluation(self.device.type):
            logits = self._logits(images, f"on batch {batch_idx} of {stage}")
            check_num_classes(self._trainer, logits.shape[1])
            check_labels(labels, logits)  # Attacks check them too, but not all do.
            correct = logits.argmax(1) == labels
            clean.update(correct)
            found: list[tuple[NamedAttack, Tensor]] = []
            for named, metric in robust:
                where = f"under {named.name} on batch {batch_idx} of {stage}"
                generator, network = self._generator(stage, batch_idx), self.evaluated_network
                mask = robust_mask(network, images, labels, named.attack, named.eps, generator, correct, where)
                metric.update(mask)
                found.append((named, mask))
            for eps, metric in certified:
                # In the training form, whose bounds may be tighter than those of the plain form on the same weights.
                methods: tuple[Method, ...] = ("IBP",) if stage == "val" else METHODS
                mask = certified_mask(self.network, images, labels, eps, active=correct, methods=methods)
                check_robust(mask, eps, found, f"batch {batch_idx} of {stage}")
                metric.update(mask)
        return counted

    def _logits(self, images: Tensor, where: str) -> Tensor:
        logits = compute_logits(self.evaluated_network, images)
        check_finite(logits, where)
        return logits

    def _generator(self, stage: str, batch_idx: int) -> torch.Generator:
        """Return a generator whose random numbers depend on stage, seed and the batch's place alone."""
        place = self.locate_batch(batch_idx)
        return make_generator(self.device, stage, self.run_seed, place.rank, place.number)
