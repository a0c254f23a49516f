from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW

from cli import main
from lightning_modules import AdversarialClassifier
from lightning_modules.optimizers import build_optimizer
from rampart.files.weight_files import read_checkpoint
from rampart.networks import ResNet18
from tests.commands.toy import SETTINGS


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_spares_batchnorm_and_biases_by_option(everything: bool, fused: bool) -> None:
    network = ResNet18(width=2)
    network.linear.weight.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    sgd = partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5, fused=fused)
    optimizer = build_optimizer(sgd, network, everything)
    for value in network.parameters():
        value.grad = torch.zeros_like(value) if value.requires_grad else None
    optimizer.step()
    for name, value in network.named_parameters():
        decays = value.requires_grad and (everything or value.ndim > 1)
        # The first step of Nesterov's momentum is 1 + 0.9 times the gradient.
        torch.testing.assert_close(value.detach(), before[name] * (1 - 0.1 * 1.9 * 0.5 if decays else 1))
    assert [len(group["params"]) for group in optimizer.param_groups] == ([62] if everything else [21, 41])


def test_a_network_of_weights_alone_has_one_group() -> None:
    optimizer = build_optimizer(partial(AdamW, weight_decay=0.1), nn.Linear(2, 3, bias=False), False)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


def test_an_optimizer_without_groups_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"model\.optimizer can't be built: LBFGS doesn't support"):
        build_optimizer(LBFGS, nn.Linear(2, 3), False)


RECIPE = """
model:
  class_path: AdversarialClassifier
  init_args:
    network: tests.lightning_modules.test_optimizers.Normalised
    objective:
      class_path: rampart.objectives.AWP
      init_args:
        objective:
          class_path: rampart.objectives.AdversarialTraining
          init_args: {{loss: {loss}}}
        gamma: 0.01
        from_eps: 20/255
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.2, momentum: 0.9, nesterov: true, weight_decay: 0.1}}}}
    decay_norm_and_bias: false
    lr_scheduler: {{class_path: torch.optim.lr_scheduler.{name}, init_args: {{{arguments}}}}}
    lr_interval: {interval}
ramp: {{phases: [{{epochs: 4, start_eps: 10/255, end_eps: 40/255}}]}}
"""


UNIFORM = "{class_path: torch.nn.CrossEntropyLoss, init_args: {label_smoothing: 0.4}}"
RANDOM = "{class_path: rampart.objectives.RandomLabelSmoothing, init_args: {smoothing: 0.4}}"


class Normalised(nn.Sequential):
    """A network with BatchNorm for the toy images."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


@pytest.mark.parametrize(
    ("name", "arguments", "interval", "loss"),
    [
        ("OneCycleLR", "max_lr: 0.2, total_steps: -1", "step", RANDOM),
        ("MultiStepLR", "milestones: [2, 3]", "epoch", UNIFORM),
        ("CosineAnnealingLR", "T_max: -1", "step", UNIFORM),
    ],
)
def test_a_recipe_from_yaml_resumes_bit_equal(
    tmp_path: Path, name: str, arguments: str, interval: str, loss: str
) -> None:
    (tmp_path / "a.yaml").write_text(RECIPE.format(name=name, arguments=arguments, interval=interval, loss=loss))
    settings = [setting for setting in SETTINGS if "--model=" not in setting and "network" not in setting]
    common = [
        "fit", "--config", str(tmp_path / "a.yaml"), *settings,
        "--trainer.max_epochs=4", "--checkpoint.every_n_train_steps=5", "--checkpoint.monitor=null",
        "--checkpoint.save_top_k=-1", "--test_after_fit=false", f"--runs_dir={tmp_path}",
    ]  # fmt: skip
    main(common)
    (whole,) = tmp_path.rglob("last.ckpt")
    (middle,) = tmp_path.rglob("*step5.ckpt")
    main([*common, f"--ckpt_path={middle}"])
    (resumed,) = set(tmp_path.rglob("last.ckpt")) - {whole}
    one, other = read_checkpoint(whole), read_checkpoint(resumed)
    torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], other["optimizer_states"], rtol=0, atol=0)
    groups: Any = one["optimizer_states"][0]["param_groups"]
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(2, 0.1), (4, 0.0)]
    assert groups[0]["lr"] == groups[1]["lr"] < 0.02
    assert all((group["momentum"] > 0.9) == (name == "OneCycleLR") for group in groups)
    loaded: Any = AdversarialClassifier.load_from_checkpoint(whole)
    assert [len(group["params"]) for group in build_groups(loaded)] == [2, 4]


def build_groups(module: AdversarialClassifier) -> list[dict[str, Any]]:
    return build_optimizer(module._optimizer, module.network, module._decay_norm_and_bias).param_groups
