"""Bad input to every command: one line that names the input, a non-zero exit status, and no changed file.

A row is a command, its arguments, and texts that the line must contain. ``{name}`` in an argument is a file of the
fixture ``files``.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli import main
from rampart.networks import MNISTCNN
from tests.test_cli import QUICKSTART, SMALL, Payload

USER_CODE = '''
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IMAGES, LABELS = torch.rand(8, 1, 28, 28), torch.arange(8)


class Plain(LightningDataModule):
    """Eight valid images; the other data modules change one thing each."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def sets(self):
        return IMAGES, LABELS

    def loader(self):
        return DataLoader(TensorDataset(*self.sets()), batch_size=self.batch_size)

    def train_dataloader(self):
        return self.loader()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class NaN(Plain):
    def sets(self):
        return torch.full_like(IMAGES, torch.nan), LABELS


class Bytes(Plain):
    def sets(self):
        return IMAGES * 255, LABELS


class Normalised(Plain):
    def sets(self):
        return IMAGES * 2 - 1, LABELS


class Infinite(Plain):
    def sets(self):
        return torch.full_like(IMAGES, torch.inf), LABELS


class Class10(Plain):
    def sets(self):
        return IMAGES, LABELS + 8


class Negative(Plain):
    def sets(self):
        return IMAGES, LABELS - 1


class Ignored(Plain):
    def sets(self):
        return IMAGES, torch.full_like(LABELS, -100)


class Soft(Plain):
    def sets(self):
        return IMAGES, torch.full((8, 10), 0.1)


class Real(Plain):
    def sets(self):
        return IMAGES, LABELS + 0.5


class TwoLabels(Plain):
    def sets(self):
        return IMAGES, torch.stack([LABELS, LABELS], 1)


class Wide(Plain):
    def sets(self):
        return torch.rand(8, 1, 32, 32), LABELS


class Colour(Plain):
    def sets(self):
        return torch.rand(8, 3, 28, 28), LABELS


class Flat(Plain):
    def sets(self):
        return torch.rand(8, 784), LABELS


class Complex(Plain):
    def sets(self):
        return IMAGES.to(torch.complex64), LABELS


class Int64(Plain):
    def sets(self):
        return (IMAGES * 255).long(), LABELS


class OnlyImages(Plain):
    def sets(self):
        return (IMAGES,)


class Texts(Plain):
    def loader(self):
        return DataLoader([("seven", 7)] * 8, batch_size=4)


class Keys(Plain):
    def loader(self):
        return DataLoader([{"pixels": image, "what": 1} for image in IMAGES], batch_size=4)


class Empty(Plain):
    def sets(self):
        return IMAGES[:0], LABELS[:0]


class NoLoaders(LightningDataModule):
    pass


class Broken(Plain):
    def loader(self):
        raise OSError("disk of the images is gone")


class Two(Plain):
    def test_dataloader(self):
        return [self.loader(), self.loader()]

    predict_dataloader = test_dataloader


class Net(nn.Module):
    """A valid network; the others change its output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Text(Net):
    def forward(self, x):
        return "seven"


class Pair(Net):
    def forward(self, x):
        return super().forward(x), 1


class Column(Net):
    def forward(self, x):
        return super().forward(x).sum(1)


class OneForAll(Net):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


class Classes(Net):
    def forward(self, x):
        return super().forward(x).argmax(1, keepdim=True).expand(-1, 10)


class NotANumber(Net):
    def forward(self, x):
        return super().forward(x) * torch.nan


class Fails(Net):
    def forward(self, x):
        raise RuntimeError("no such table")


class NeedsArgument(Net):
    def __init__(self, width: int) -> None:
        super().__init__()


def number() -> int:
    return 3


def crashes() -> nn.Module:
    raise OSError("weights server is down")


VALUE = 3
'''


def own(name: str) -> list[str]:
    return [f"--data=rampart_bad_user.{name}"]


def network(name: str) -> list[str]:
    return [f"--model.network=rampart_bad_user.{name}"]


def weights(name: str) -> list[str]:
    return [f"--ckpt_path={{{name}}}"]


EVALUATE = ["--ckpt_path={weights}", "--eps=[0.1]", "--num_images=4", "--preset=quick"]
PHASE = "--ramp.phases=[{{epochs: 2, end_eps: {0}}}]"

ROWS: list[tuple[str, list[str], list[str]]] = [
    # Unknown options, and options without a value.
    ("fit", ["--trainer.max_epochz=3"], ["max_epochz"]),
    ("fit", ["--trainer.max_epoch=3"], ["max_epoch"]),
    ("fit", ["--epochs=3"], ["--epochs"]),
    ("fit", ["--model.init_args.epss=0.3"], ["epss"]),
    ("fit", ["--ramp.phase=[]"], ["phase"]),
    ("test", ["--ramp.init=weights.pth"], ["--ramp.init"]),
    ("evaluate", ["--presets=quick"], ["presets"]),
    ("export", ["--format=pth"], ["--format"]),
    ("predict", ["--data.batchsize=4"], ["batchsize"]),
    ("fit", ["--name"], ["--name"]),
    ("fit", ["surprise"], ["surprise"]),
    ("fit", ["--config"], ["--config"]),
    # Configs.
    ("fit", ["--config=nowhere.yaml"], ["nowhere.yaml"]),
    ("fit", ["--config={broken_yaml}"], ["broken.yaml"]),
    ("fit", ["--config={list_yaml}"], ["list.yaml"]),
    ("fit", ["--config={binary_yaml}"], ["binary.yaml"]),
    ("fit", ["--config={unknown_yaml}"], ["surprise"]),
    ("fit", ["--config={folder}"], ["folder"]),
    ("fit", ["--config={python_yaml}"], ["python.yaml"]),
    # Values of the wrong kind.
    ("fit", ["--trainer.max_epochs=ten"], ["max_epochs", "ten"]),
    ("fit", ["--trainer.max_epochs=2.5"], ["max_epochs", "2.5"]),
    ("fit", ["--seed_everything=abc"], ["seed_everything", "abc"]),
    ("fit", ["--seed_everything=1.5"], ["seed_everything", "1.5"]),
    ("fit", ["--seed_everything=-1"], ["seed", "-1"]),
    ("fit", ["--test_after_fit=perhaps"], ["test_after_fit", "perhaps"]),
    ("fit", ["--trainer.accelerator=abacus"], ["abacus"]),
    ("fit", ["--trainer.devices=many"], ["devices", "many"]),
    ("fit", ["--trainer.devices=0"], ["devices", "0"]),
    ("fit", ["--trainer.strategy=magic"], ["magic"]),
    ("fit", ["--trainer.precision=8"], ["precision", "8"]),
    ("fit", ["--trainer.limit_train_batches=-1"], ["limit_train_batches", "-1"]),
    ("fit", ["--trainer.limit_train_batches=0"], ["limit_train_batches", "0"]),
    ("fit", ["--trainer.accumulate_grad_batches=0"], ["accumulate_grad_batches", "0"]),
    ("fit", ["--trainer.accumulate_grad_batches=-2"], ["accumulate_grad_batches", "-2"]),
    ("fit", ["--trainer.max_epochs=0"], ["max_epochs", "0"]),
    ("fit", ["--trainer.max_epochs=-5"], ["max_epochs", "-5"]),
    ("fit", ["--trainer.val_check_interval=7.5"], ["val_check_interval"]),
    ("fit", ["--trainer.gradient_clip_val=minus"], ["gradient_clip_val", "minus"]),
    ("fit", ["--trainer.logger=Chalkboard"], ["Chalkboard"]),
    ("fit", ["--trainer.callbacks=Telephone"], ["Telephone"]),
    ("fit", ["--trainer.max_time=tomorrow"], ["max_time", "tomorrow"]),
    # The attack.
    ("fit", ["--model.attack.init_args.step_size=0"], ["step_size", "0"]),
    ("fit", ["--model.attack.init_args.step_size=-0.1"], ["step_size", "-0.1"]),
    ("fit", ["--model.attack.init_args.step_size=nan"], ["step_size", "nan"]),
    ("fit", ["--model.attack.init_args.steps=-1"], ["steps", "-1"]),
    ("fit", ["--model.attack.init_args.steps=many"], ["steps", "many"]),
    ("fit", ["--model.attack.init_args.steps=paper"], ["paper", "step_size"]),
    ("fit", ["--model.attack.init_args.norm=L7"], ["norm", "L7"]),
    ("fit", ["--model.attack.init_args.norm=L2"], ["norm", "L2"]),
    ("fit", ["--model.attack.init_args.restarts=0"], ["restarts", "0"]),
    ("fit", ["--model.attack.init_args.loss=hinge"], ["loss", "hinge"]),
    ("fit", ["--model.attack.init_args.batchnorm=frozen"], ["batchnorm", "frozen"]),
    ("fit", ["--model.attack.init_args.iterate=first"], ["iterate", "first"]),
    ("fit", ["--model.attack.init_args.step_schedule=cosine"], ["step_schedule", "cosine"]),
    ("fit", ["--model.attack.start=Level", "--model.attack.start.low=0.9", "--model.attack.start.high=0.1"],
     ["low", "0.9", "0.1"]),
    ("fit", ["--model.attack.start=Level", "--model.attack.start.low=0.9"], ["start", "high"]),
    ("fit", ["--model.attack.start=Gray"], ["start", "Gray"]),
    ("fit", ["--model.attack.start=rampart.attacks.PGD"], ["start", "PGD"]),
    ("fit", ["--model.attack.start.low=0.4"], ["start", "low", "Uniform, which has no settings"]),
    ("fit", ["--model.attack.random_start=false"], ["random_start"]),
    ("fit", ["--model.attack=rampart.attacks.BIM"], ["attack", "BIM"]),
    ("fit", ["--model.attack=torch.nn.Linear"], ["attack", "Linear"]),
    ("fit", ["--model.val_attack=rampart.attacks.PGD", "--model.val_attack.norm=L2"], ["val_attack", "L2"]),
    # eps and the ramp.
    ("fit", ["--model.eps=-0.1"], ["eps", "-0.1"]),
    ("fit", ["--model.eps=8"], ["eps", "8/255"]),
    ("fit", ["--model.eps=abc"], ["eps", "abc"]),
    ("fit", ["--model.eps=nan"], ["eps", "nan"]),
    ("fit", ["--model.eps=inf"], ["eps", "inf"]),
    ("fit", ["--model.eps=8/0"], ["eps", "8/0"]),
    ("fit", ["--model.eps=8/255/1"], ["eps", "8/255/1"]),
    ("fit", ["--model.eps=8/"], ["eps", "8/"]),
    ("fit", ["--ramp.phases=[]"], ["ramp.phases"]),
    ("fit", ["--ramp.phases=0.4"], ["phases", "0.4"]),
    ("fit", ["--ramp.phases=[{epochs: 1, end_eps: 0.4}]"], ["phases", "1 epochs", "2"]),
    ("fit", ["--ramp.phases=[{epochs: 2, end_epss: 0.4}]"], ["end_epss"]),
    ("fit", ["--ramp.phases=[{epochs: 2}]"], ["end_eps"]),
    ("fit", [PHASE.format("-1")], ["end_eps", "-1"]),
    ("fit", [PHASE.format("2")], ["end_eps", "2"]),
    ("fit", [PHASE.format("high")], ["end_eps", "high"]),
    ("fit", ["--ramp.phases=[{epochs: 0, end_eps: 0.1}]"], ["epochs", "0"]),
    ("fit", ["--ramp.phases=[{end_eps: 0.1}]"], ["epochs", "train_steps"]),
    ("fit", ["--ramp.phases=[{epochs: 1, train_steps: 1, end_eps: 0.1}]"], ["epochs", "train_steps"]),
    ("fit", ["--ramp.phases=[{epochs: 1, end_eps: 0.1}, {train_steps: 1, end_eps: 0.1}]"], ["epochs", "train_steps"]),
    ("fit", ["--ramp.phases=[{epochs: 2, end_eps: 0.1, shape: step}]"], ["shape", "step"]),
    ("fit", ["--ramp.phases=[{epochs: 2, end_eps: 0.1, interval: week}]"], ["interval", "week"]),
    ("fit", ["--ramp.phases=[{epochs: 2, end_eps: 0.1, start_eps: 0, shape: constant}]"], ["constant"]),
    ("fit", ["--ramp.phases=[{epochs: 2, end_eps: 0.1, step_size: 0}]"], ["step_size", "0"]),
    ("fit", ["--ramp.phases=[{epochs: 2, end_eps: 0.1, steps: -3}]"], ["steps", "-3"]),
    ("fit", ["--ramp.adaptive=null"], ["--ramp.adaptive must be true, false, or settings such as '{share: 0.2}'"]),
    ("fit", ["--ramp.adaptive={shar: 0.2}"], ["--ramp.adaptive.share"]),
    ("fit", ["--ramp.adaptive={share: 2}"], ["ramp.adaptive.share must be above 0 and below 1, got 2.0"]),
    ("fit", ["--guard.action=halt"], ["--guard.action must be none, warn, stop or recover", "halt"]),
    ("fit", ["--guard.every_n_steps=0"], ["guard.every_n_steps must be at least 1, got 0"]),
    ("fit", ["--ramp.init_from=nowhere.pth"], ["nowhere.pth"]),
    ("fit", ["--ramp.init_from={folder}"], ["folder"]),
    ("fit", ["--ramp.init_from={text}"], ["text.ckpt"]),
    ("fit", ["--ramp.init_from={nan}"], ["nan.pth"]),
    ("fit", ["--ramp.init_from={other}"], ["fc2.weight"]),
    ("fit", ["--ramp.init_from={weights}", "--ckpt_path={weights}"], ["init_from"]),
    # Model, objective, optimizer, schedule.
    ("fit", ["--model=NoSuchClassifier"], ["NoSuchClassifier"]),
    ("fit", ["--model.network=rampart.networks.LeNet"], ["LeNet"]),
    ("fit", ["--model.network=rampart.networks.MNISTCNN", "--model.network.num_classes=0"], ["num_classes", "0"]),
    ("fit", ["--model.network=rampart.networks.MNISTCNN", "--model.network.num_classes=5"], ["[0, 5)"]),
    ("fit", ["--model.network=rampart.networks.MNISTCNN", "--model.network.init=zeros"], ["init", "zeros"]),
    ("fit", ["--model.network=rampart.networks.Normalize", "--model.network.mean=[0]", "--model.network.std=[0]"],
    ["std"]),
    ("fit", ["--model.objective=rampart.objectives.TRADES", "--model.objective.beta=-1"], ["beta", "-1"]),
    ("fit", ["--model.objective=rampart.objectives.MTLIBP", "--model.objective.weight=2"], ["weight", "2"]),
    ("fit", ["--model.objective=rampart.objectives.FAT"], ["FAT"]),
    ("fit", ["--model.objective=rampart.objectives.TRADES", "--model.attack=rampart.attacks.FAB"], ["TRADES", "FAB"]),
    ("fit", ["--model.optimizer=SGDD"], ["SGDD"]),
    ("fit", ["--model.optimizer=SGD", "--model.optimizer.lr=-1"], ["model.optimizer", "-1"]),
    ("fit", ["--model.optimizer=SGD", "--model.optimizer.lr=fast"], ["lr", "fast"]),
    ("fit", ["--model.lr_scheduler=Soon"], ["Soon"]),
    ("fit", ["--model.lr_interval=week"], ["lr_interval", "week"]),
    ("fit", ["--model.test_attacks=[{eps: 0.1}]"], ["attack"]),
    ("fit", ["--model.test_attacks=[{eps: 3, attack: rampart.attacks.PGD}]"], ["eps", "3"]),
    ("fit", ["--model.test_attacks=[{eps: 0.1, attack: rampart.attacks.PGD}, {eps: 0.1, attack: rampart.attacks.PGD}]"],
     ["distinct names"]),
    # Data.
    ("fit", ["--data=NoSuchData"], ["NoSuchData"]),
    ("fit", ["--data=torchvision.datasets.MNIST"], ["torchvision.datasets.MNIST"]),
    ("fit", ["--data=datamodules.MNISTDataModule", "--data.data_dir={text}"], ["data_dir"]),
    ("fit", ["--data.batch_size=0"], ["batch_size", "0"]),
    ("fit", ["--data.batch_size=-3"], ["batch_size", "-3"]),
    ("fit", ["--data.batch_size=lots"], ["batch_size", "lots"]),
    ("fit", ["--data.eval_batch_size=0"], ["eval_batch_size", "0"]),
    ("fit", ["--data.val_size=-1"], ["val_size", "-1"]),
    ("fit", ["--data.val_size=4000"], ["val_size", "4000"]),
    ("fit", ["--data.max_shift=-1"], ["max_shift", "-1"]),
    ("fit", ["--data.max_shift=100"], ["max_shift", "100"]),
    ("fit", ["--data.batch_size=4000", "--data.drop_last=true"], ["batch"]),
    *[(command, [*own(name), *more], fragments)
      for name, fragments in [
          ("NaN", ["NaN"]), ("Bytes", ["[0, 1]"]), ("Normalised", ["[0, 1]"]), ("Infinite", ["[0, 1]"]),
          ("Class10", ["labels", "10"]), ("Negative", ["labels", "-1"]), ("Ignored", ["labels", "-100"]),
          ("Soft", ["labels"]), ("Real", ["labels"]), ("TwoLabels", ["labels"]), ("OnlyImages", ["labels"]),
          ("Texts", ["str"]), ("Keys", ["pixels"]), ("Complex", ["complex64"]), ("Int64", ["int64"]),
          ("Wide", ["32"]), ("Broken", ["disk of the images is gone"]), ("Empty", ["no"]),
      ]
      for command, more in [("fit", []), ("test", []), ("evaluate", EVALUATE)]],
    ("fit", own("NoLoaders"), ["train_dataloader"]),
    ("test", own("NoLoaders"), ["test_dataloader"]),
    ("predict", own("NoLoaders"), ["predict_dataloader"]),
    ("validate", own("NoLoaders"), ["val_dataloader"]),
    ("evaluate", [*own("NoLoaders"), *EVALUATE], ["test_dataloader"]),
    ("validate", ["--data.val_size=0"], ["val"]),
    ("test", ["--trainer.limit_test_batches=0"], ["limit_test_batches", "0"]),
    ("predict", ["--trainer.limit_predict_batches=0"], ["limit_predict_batches", "0"]),
    # Outputs of the network.
    *[(command, [*network(name), *more], fragments)
      for name, fragments in [
          ("Text", ["str"]), ("Pair", ["tuple"]), ("Column", ["logits"]), ("OneForAll", ["logits"]),
          ("Classes", ["int64"]), ("Fails", ["no such table"]),
      ]
      for command, more in [("fit", []), ("test", []), ("evaluate", [*EVALUATE[1:], "--ckpt_path={linear}"])]],
    ("fit", network("NotANumber"), ["NaN"]),
    ("test", network("NotANumber"), ["NaN"]),
    ("predict", network("NotANumber"), ["NaN"]),
    ("validate", network("NotANumber"), ["NaN"]),
    ("evaluate", [*network("NotANumber"), *EVALUATE[1:], "--ckpt_path={linear}"], ["NaN"]),
    ("fit", network("NeedsArgument"), ["width"]),
    ("evaluate", ["--model.network=rampart_bad_user.number", *EVALUATE[1:]], ["number"]),
    ("evaluate", ["--model.network=rampart_bad_user.VALUE", *EVALUATE[1:]], ["VALUE"]),
    ("evaluate", ["--model.network=rampart_bad_user.crashes", *EVALUATE[1:]], ["weights server is down"]),
    ("evaluate", ["--model.network=rampart_bad_user.Missing", *EVALUATE], ["Missing"]),
    ("evaluate", ["--model.network=no_such_package.Net", *EVALUATE], ["no_such_package"]),
    ("evaluate", ["--model.network=subprocess.getoutput", "--model.network.cmd=touch {trace}", *EVALUATE],
    ["getoutput"]),
    # Weights and checkpoints.
    *[(command, [*weights(name), *more], fragments)
      for name, fragments in [
          ("missing", ["missing.pth"]), ("folder", ["folder"]), ("text", ["text.ckpt"]), ("empty", ["empty.ckpt"]),
          ("truncated", ["truncated.pth"]), ("malicious", ["malicious.ckpt", "refused"]), ("other", ["fc2.weight"]),
          ("nan", ["nan.pth", "NaN"]), ("int8", ["int8"]), ("complex", ["complex64"]), ("numbers", ["numbers.pth"]),
          ("no_tensors", ["no_tensors.pth"]),
      ]
      for command, more in [("test", []), ("evaluate", EVALUATE[1:]), ("export", []), ("predict", [])]],
    ("fit", ["--ckpt_path={weights}"], ["--ramp.init_from"]),
    ("fit", ["--ckpt_path={text}"], ["text.ckpt"]),
    ("fit", ["--ckpt_path={half_a_checkpoint}"], ["half_a_checkpoint.ckpt"]),
    ("fit", ["--ckpt_path=last"], ["last"]),
    ("fit", ["--ckpt_path=best"], ["best"]),
    ("test", ["--ckpt_path=hpc"], ["hpc"]),
    ("fit", ["--ckpt_path=http://127.0.0.1:9/a.ckpt"], ["http://127.0.0.1:9/a.ckpt"]),
    ("fit", ["--ckpt_path="], ["ckpt_path"]),
    ("evaluate", EVALUATE[1:], ["--ckpt_path"]),
    ("export", [], ["--ckpt_path"]),
    # evaluate and export.
    ("evaluate", [*EVALUATE, "--preset=autoatack"], ["preset", "autoatack"]),
    ("evaluate", [*EVALUATE, "--eps=[0.2, 0.1]"], ["eps", "0.2"]),
    ("evaluate", [*EVALUATE, "--eps=[]"], ["eps"]),
    ("evaluate", [*EVALUATE, "--eps=[0]"], ["eps", "0"]),
    ("evaluate", [*EVALUATE, "--eps=[1.5]"], ["eps", "1.5"]),
    ("evaluate", [*EVALUATE, "--eps=large"], ["eps", "large"]),
    ("evaluate", [*EVALUATE, "--num_images=0"], ["num_images", "0"]),
    ("evaluate", [*EVALUATE, "--num_images=-4"], ["num_images", "-4"]),
    ("evaluate", [*EVALUATE, "--num_images=100000"], ["num_images", "100000", "1000"]),
    ("evaluate", [*EVALUATE, "--batch_size=0"], ["batch_size", "0"]),
    ("evaluate", [*EVALUATE, "--attacks=[]"], ["attacks"]),
    ("evaluate", [*EVALUATE, "--attacks=[{class_path: rampart.attacks.FGSM}]"], ["FGSM"]),
    ("evaluate", [*EVALUATE[:3], "--attacks=[rampart.attacks.PGD, rampart.attacks.PGD]"], ["distinct names"]),
    ("evaluate", [EVALUATE[0], "--attacks=[{class_path: rampart.attacks.PGD, init_args: {norm: L2}}]"], ["eps", "L2"]),
    ("evaluate", [*EVALUATE[:3], "--attacks=[{class_path: rampart.attacks.Square, init_args: {queries: 0}}]"],
    ["queries"]),
    ("evaluate", [*EVALUATE[:3], "--attacks=[{class_path: rampart.attacks.Square, init_args: {area: 2}}]"], ["area",
    "2"]),
    ("evaluate", [*EVALUATE[:3], "--attacks=[{class_path: rampart.attacks.APGD, init_args: {targets: 0}}]"],
    ["targets"]),
    ("evaluate", [*EVALUATE[:3], "--attacks=[{class_path: rampart.attacks.FAB, init_args: {steps: 0}}]"], ["steps",
    "0"]),
    ("evaluate", [*own("Flat"), *network("Net"), *EVALUATE[1:], "--ckpt_path={linear}"], ["Square", "(N, C, H, W)"]),
    ("evaluate", [*own("Two"), *EVALUATE], ["list of 2"]),
    ("export", ["--ckpt_path={weights}", "--formats=[tflite]"], ["tflite"]),
    ("export", ["--ckpt_path={weights}", "--formats=[]"], ["formats"]),
    ("export", ["--ckpt_path={linear}", *network("Net")], ["image_shape"]),
    # Folders, monitors, figures.
    ("fit", ["--name=../elsewhere"], ["name", "../elsewhere"]),
    ("fit", ["--name="], ["name"]),
    ("fit", ["--runs_dir="], ["runs_dir"]),
    ("fit", ["--runs_dir={text}"], ["text.ckpt"]),
    ("fit", ["--checkpoint.monitor=val/nope"], ["val/nope"]),
    ("fit", ["--checkpoint.mode=best"], ["mode", "best"]),
    ("fit", ["--checkpoint.save_top_k=-3"], ["save_top_k", "-3"]),
    ("fit", ["--checkpoint.every_n_train_steps=-1"], ["every_n_train_steps", "-1"]),
    ("fit", ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/nope"], ["val/nope"]),
    ("fit", ["--images.num_images=-1"], ["num_images", "-1"]),
    ("fit", ["--images.every_n_epochs=0"], ["every_n_epochs", "0"]),
    ("fit", ["--curve.num_images=-1"], ["num_images", "-1"]),
    ("fit", ["--curve.eps_grid=[0.4, 0.1]"], ["eps_grid", "0.4"]),
    ("fit", ["--curve.eps_grid=[2]"], ["eps_grid", "2"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return bad files and two good ones."""
    folder = tmp_path_factory.mktemp("files")
    sys.path.insert(0, str(folder))
    (folder / "rampart_bad_user.py").write_text(USER_CODE)
    torch.manual_seed(0)
    state = MNISTCNN().state_dict()
    tensors: dict[str, Any] = {
        "weights.pth": state,
        "nan.pth": state | {"fc1.bias": torch.full_like(state["fc1.bias"], torch.nan)},
        "other.pth": MNISTCNN(num_classes=12).state_dict(),
        "int8.pth": {name: tensor.to(torch.int8) for name, tensor in state.items()},
        "complex.pth": {name: tensor.to(torch.complex64) for name, tensor in state.items()},
        "numbers.pth": [1, 2, 3],
        "no_tensors.pth": {"epoch": 3, "name": "run"},
        "malicious.ckpt": {"state_dict": Payload(folder / "trace")},
        "half_a_checkpoint.ckpt": {"pytorch-lightning_version": "2.6.0",
                                   "state_dict": {f"network.{name}": tensor for name, tensor in state.items()}},
    }  # fmt: skip
    for name, content in tensors.items():
        torch.save(content, folder / name)
    (folder / "truncated.pth").write_bytes((folder / "weights.pth").read_bytes()[:1000])
    (folder / "text.ckpt").write_text("no tensors\n")
    (folder / "empty.ckpt").write_bytes(b"")
    linear = {"linear.weight": torch.zeros(10, 784), "linear.bias": torch.eye(10)[0]}  # always predicts 0
    save_file(linear, folder / "linear.safetensors")
    quickstart = Path(QUICKSTART).read_text()
    (folder / "broken.yaml").write_text("trainer: {max_epochs: [1\n")
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "binary.yaml").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    (folder / "unknown.yaml").write_text(quickstart + "\nsurprise: 1\n")
    (folder / "python.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {folder / 'trace'}']\n")
    (folder / "folder").mkdir()
    names = {
        **{path.stem: path for path in folder.iterdir() if path.suffix in (".pth", ".ckpt", ".safetensors")},
        **{f"{path.stem}_yaml": path for path in folder.glob("*.yaml")},
    }
    return names | {"folder": folder / "folder", "missing": folder / "missing.pth", "trace": folder / "trace"}


@pytest.mark.parametrize(
    ("command", "arguments", "fragments"), ROWS, ids=[" ".join([command, *given]) for command, given, _ in ROWS]
)
def test_bad_input_ends_in_one_line(
    files: dict[str, Path], tmp_path: Path, capfd: Any, command: str, arguments: list[str], fragments: list[str]
) -> None:
    files["trace"].unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in files.values() if path.is_file()}
    for name, path in files.items():
        arguments = [argument.replace(f"{{{name}}}", str(path)) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config", QUICKSTART, f"--runs_dir={tmp_path}", *SMALL, *arguments])
    out, err = capfd.readouterr()
    assert stopped.value.code not in (0, None)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    assert "accuracy (%)" not in out
    assert len(errors[0]) < 600
    for fragment in fragments:
        assert fragment in errors[0]
    assert {path: path.read_bytes() for path in before} == before
    assert not files["trace"].exists()


def test_the_table_is_long_enough_and_covers_every_command() -> None:
    assert len(ROWS) >= 300
    assert {command for command, _, _ in ROWS} == {"fit", "validate", "test", "predict", "evaluate", "export"}
