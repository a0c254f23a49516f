from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from lightning_modules import AdversarialClassifier, MNISTClassifier
from lightning_modules.loaders import SamplerPadding, warn_about_stream
from rampart.attacks import PGD, AtImage, NamedAttack
from rampart.networks import GatedMNISTCNN

IMAGES = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
COMMANDS = ("fit", "validate", "test", "predict")


def classifier(network: nn.Module | None = None, **settings: Any) -> Any:
    torch.manual_seed(1)
    network = network or nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    defaults: dict[str, Any] = {"eps": 0.1, "attack": PGD(steps=1)}
    return AdversarialClassifier(network, **(defaults | settings))


def run(command: str, module: Any, loader: Any, **settings: Any) -> Any:
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    defaults: dict[str, Any] = dict.fromkeys(quiet, False) | {"accelerator": "cpu", "max_epochs": 1}
    trainer = Trainer(**(defaults | settings))
    if command == "fit":
        return trainer.fit(module, loader, loader)
    return getattr(trainer, command)(module, loader)


def make_loader(*tensors: Any, **settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), **({"batch_size": 6} | settings))


def batches(*made: Any) -> DataLoader[Any]:
    some: Any = list(made)
    return DataLoader(some, batch_size=None)


ONE_HOT = nn.functional.one_hot(LABELS, 3).float()
FORMS: dict[str, Any] = {
    "dictionaries": [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)],
    "int32 labels": TensorDataset(IMAGES, LABELS.int()),
    "column labels": TensorDataset(IMAGES, LABELS[:, None]),
    "one-hot labels": TensorDataset(IMAGES, ONE_HOT),
    "double": TensorDataset(IMAGES.double(), LABELS),
    "double into a double network": TensorDataset(IMAGES.double() * (1 + 1e-9), LABELS.short()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_command_accepts_every_form_of_batch(form: str) -> None:
    loader: Any = DataLoader(FORMS[form], batch_size=6)
    dtype = torch.float64 if form.endswith("network") else torch.float32
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to(dtype)
    expected = (network(IMAGES.to(dtype)).argmax(1) == LABELS).float().mean().item()
    module = classifier(network)
    (validated,), (tested,) = run("validate", module, loader), run("test", module, loader)
    assert validated["val/clean_acc"] == tested["test/clean_acc"] == pytest.approx(expected)
    predicted = run("predict", module, loader)
    assert torch.equal(torch.cat([part["label"] for part in predicted]), LABELS)
    run("fit", module, loader)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": IMAGES, "label": LABELS}, r"a batch must be .*got dict of \(picture: Tensor \(12, 1, 4, 4\)"),
        ((IMAGES, ONE_HOT * 0.8 + 0.05), "one-hot, not soft or several; got"),
        ((IMAGES, LABELS + 0.5), "labels must be whole numbers"),
        ((IMAGES, ["a"] * 12), "labels must be .*got list of 12 str"),
        ((IMAGES, LABELS[:5]), r"one for each of 12 images, or one-hot; got shape \(5,\)"),
        ((IMAGES * 1.04, LABELS), r"images must be in \[0, 1\] without NaN, got 0\.\d+ to 1\.\d{5}"),
        ((IMAGES.mul(255).long(), LABELS), "images must be float in .* or uint8, got torch.int64"),
    ],
)
def test_other_forms_are_refused_by_every_command_in_the_same_line(batch: Any, message: str) -> None:
    lines = set()
    for command in COMMANDS:
        with pytest.raises(ValueError, match=message) as caught:
            run(command, classifier(), batches(batch))
        lines.add(str(caught.value))
    assert len(lines) == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("several", [list, dict])
def test_several_loaders_are_refused_in_one_line(command: str, several: Any) -> None:
    two: Any = [make_loader(IMAGES, LABELS), make_loader(IMAGES, LABELS)]
    if several is dict:
        two = {"a": two[0], "b": two[1]}
    with pytest.raises(
        ValueError, match=r"must return one loader, got a (list|dict) of 2|got (list|dict) of "
    ) as caught:
        run(command, classifier(), two)
    assert "\n" not in str(caught.value)
    one: Any = [make_loader(IMAGES, LABELS)] if several is list else {"a": make_loader(IMAGES, LABELS)}
    if command != "fit":
        run(command, classifier(), one)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(IMAGES, LABELS, strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_loaders_without_a_length_are_read(command: str) -> None:
    result = run(command, classifier(), DataLoader(Stream(), batch_size=5))
    if command == "test":
        assert (
            result[0]["test/clean_acc"] == run("test", classifier(), make_loader(IMAGES, LABELS))[0]["test/clean_acc"]
        )


class Recorder(nn.Module):
    """Records the mode and the logits' dtype of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dtypes = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), set[tuple[bool, torch.dtype]]()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        self.dtypes.add((self.training, logits.dtype))
        return logits


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_evaluation_uses_float32_in_every_precision_of_the_trainer(precision: Any) -> None:
    network, results = Recorder(), []
    module = classifier(network, attack=PGD(steps=2), test_attacks=[NamedAttack(PGD(steps=2), 0.1)])
    for command in ("validate", "test", "predict"):
        results.append(run(command, module, make_loader(IMAGES, LABELS), precision=precision))
    assert network.dtypes == {(False, torch.float32)}
    full = [run(command, module, make_loader(IMAGES, LABELS)) for command in ("validate", "test", "predict")]
    assert results[:2] == full[:2]
    assert torch.equal(results[2][0]["adv_confidence"], full[2][0]["adv_confidence"])


def test_validation_during_training_in_bfloat16_uses_float32() -> None:
    network = Recorder()
    run("fit", classifier(network), make_loader(IMAGES, LABELS), precision="bf16-mixed", num_sanity_val_steps=0)
    assert (True, torch.bfloat16) in network.dtypes  # the training step
    seen: set[Any] = set()
    network.dtypes = seen
    run("validate", classifier(network), make_loader(IMAGES, LABELS), precision="bf16-mixed")
    assert seen == {(False, torch.float32)}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_precision_that_rounds_images_is_refused(command: str, precision: Any) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.precision {precision} rounds images.*use bf16-mixed"):
        run(command, classifier(), make_loader(IMAGES, LABELS), precision=precision)


class NanWhereBright(nn.Module):
    """Returns NaN for images whose mean is above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.inner, self.threshold = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), threshold

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits.where(images.flatten(1).mean(1, keepdim=True) < self.threshold, torch.nan)


@pytest.mark.parametrize("command", COMMANDS[1:])
@pytest.mark.parametrize(("threshold", "where"), [(0.5, "on batch 0 of"), (0.7, r"under PGD-3 @ 0\.3 on batch 0 of")])
def test_non_finite_logits_are_an_error_and_give_no_result(command: str, threshold: float, where: str) -> None:
    attack = PGD(steps=3)
    images = IMAGES * 0.2 + 0.35
    module = classifier(NanWhereBright(threshold), val_attack=attack, test_attacks=[NamedAttack(attack, 0.3)], eps=0.3)
    with torch.no_grad():  # Brighter images are of another class, so every attack makes them brighter.
        module.network.inner[1].weight.fill_(-1)[0] = 1
        module.network.inner[1].bias.copy_(torch.tensor([-20.0, 0, 0]))
    labels = torch.ones_like(LABELS)
    images = images if threshold > 0.6 else IMAGES * 0.2 + 0.6
    with pytest.raises(ValueError, match=f"logits {where} {'val' if command == 'validate' else command} are NaN"):
        run(command, module, make_loader(images, labels, batch_size=12))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.sub_(0.3).mul_(3))
        return logits


class OutOfPlace(InPlace):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.clone())


def test_in_place_operations_in_a_network_do_not_change_results() -> None:
    results = []
    for kind in (InPlace, OutOfPlace):
        torch.manual_seed(0)
        module = classifier(kind(), attack=PGD(steps=2, start=AtImage()), val_attack=PGD(steps=2, start=AtImage()))
        run("fit", module, make_loader(IMAGES, LABELS))
        made = [run(command, module, make_loader(IMAGES, LABELS)) for command in COMMANDS[1:]]
        results.append((made[:2], made[2][0]["adv_confidence"].tolist(), module.network.inner[1].weight.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_network_for_other_images_is_named_in_one_line(command: str) -> None:
    with pytest.raises(ValueError, match=r"Sequential failed on images of shape \(6, 1, 5, 5\) float32: mat1"):
        run(command, classifier(), make_loader(torch.rand(12, 1, 5, 5), LABELS))


def test_an_images_random_start_does_not_depend_on_the_other_images() -> None:
    """Under an attack of one tiny step the start decides which images are fooled."""
    attack = PGD(steps=1, relative_step_size=0.01)
    module = classifier(eps=0.02, val_attack=attack)
    images = torch.rand(300, 1, 4, 4)
    labels = module(images).argmax(1)
    seen: list[Tensor] = []
    module.val_robust_acc.update = seen.append
    run("validate", module, make_loader(images, labels, batch_size=300))
    half = torch.arange(300) >= 150
    run("validate", module, make_loader(images, torch.where(half, labels, (labels + 1) % 3), batch_size=300))
    everyone, rest = seen[-2:]
    assert not everyone[half].all()
    assert torch.equal(everyone[half], rest[half])
    assert not rest[~half].any()


@pytest.mark.parametrize("total", [1, 5, 6, 33])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_image_is_counted_once_over_all_processes(total: int, world: int, shuffle: bool) -> None:
    data = TensorDataset(torch.arange(total))
    seen = []
    for rank in range(world):
        sampler: Any = DistributedSampler(data, world, rank, shuffle=shuffle)
        padding = SamplerPadding([DataLoader(data, batch_size=4, sampler=sampler)])
        for (index,) in DataLoader(data, batch_size=4, sampler=sampler):
            seen += index[: padding.count_unpadded(len(index))].tolist()
    assert sorted(seen) == list(range(total))


def test_several_processes_that_read_the_same_stream_give_a_warning(recwarn: Any) -> None:
    warn_about_stream(DataLoader(Stream()), "test", 1)
    warn_about_stream(make_loader(IMAGES, LABELS), "test", 2)
    assert not [warning for warning in recwarn if "reads a stream" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"test_dataloader reads a stream .* and each of 2 processes reads all of it"):
        warn_about_stream(DataLoader(Stream()), "test", 2)


def test_loaders_of_one_process_have_no_repeated_images() -> None:
    for loader in (make_loader(IMAGES, LABELS), DataLoader(Stream(), batch_size=5), [1], None):
        assert SamplerPadding(loader).count_unpadded(7) == 7


def test_the_test_step_returns_the_counted_images() -> None:
    module = classifier()
    module._padding = SamplerPadding(None)
    module._padding._left = 4
    module.log = lambda *_, **__: None
    counted = module.test_step((IMAGES, LABELS, LABELS), 0)
    assert [len(part) for part in counted] == [4, 4, 4]


def test_the_plain_form_stays_the_same_object_until_weights_or_modes_change() -> None:
    module = MNISTClassifier(network=GatedMNISTCNN())
    plain = module.evaluated_network
    assert module.evaluated_network is plain
    assert "_plain" not in dict(module.named_modules())
    module.network.eval()
    assert module.evaluated_network is plain
    assert not plain.training
    module.network.fc2 = torch.nn.Linear(1024, 10)
    changed = module.evaluated_network
    assert changed is not plain
    assert changed.fc2 is module.network.fc2
