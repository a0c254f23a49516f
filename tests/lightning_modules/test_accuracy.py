import torch
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.accuracy import Accuracy


def test_accuracy_equals_torchmetrics() -> None:
    accuracy, reference = Accuracy(), MulticlassAccuracy(average="micro")
    for size in (7, 16, 1):
        classes, labels = torch.randint(3, (size,)), torch.randint(3, (size,))
        accuracy.update(classes == labels)
        reference.update(classes, labels)
    assert accuracy.compute() == reference.compute()
    accuracy.reset()
    assert accuracy.correct == accuracy.total == 0


def test_counts_that_were_reset_in_inference_mode_continue_outside_of_it() -> None:
    accuracy = Accuracy()
    with torch.inference_mode():
        accuracy.update(torch.tensor([True]))
        accuracy.reset()
    accuracy.update(torch.tensor([True, False]))
    assert accuracy.compute() == 0.5


def test_accuracy_of_no_images_is_0() -> None:
    accuracy = Accuracy()
    accuracy.update(torch.zeros(0, dtype=torch.bool))
    assert accuracy.compute() == 0
