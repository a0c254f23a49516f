from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli import main
from experiments.mixed_attacks import BlockPGD, MixedPGD
from rampart.attacks import PGD, AtImage
from rampart.networks import MNISTCNN
from rampart.objectives import TRADES
from tests.conftest import ROOT, LinearModel, small_network


def test_the_result_is_that_of_one_attack_and_each_is_chosen(images: Tensor, labels: Tensor) -> None:
    network = small_network()
    attacks = (PGD(steps=2, start=AtImage()), PGD(steps=1, relative_step_size=0.1, start=AtImage()))
    expected = [attack(network, images, labels, 0.3) for attack in attacks]
    generator = torch.Generator().manual_seed(0)
    mixed = MixedPGD(attacks)
    found = [mixed(network, images, labels, 0.3, generator) for _ in range(40)]
    chosen = [next(i for i, one in enumerate(expected) if torch.equal(one, adv)) for adv in found]
    assert 8 <= sum(chosen) <= 32


def test_steps_of_the_mix_are_those_of_every_attack() -> None:
    mixed = replace(MixedPGD((PGD(steps=2), PGD(steps=3, relative_step_size=0.5))), steps=7)
    assert [attack.steps for attack in mixed.attacks] == [7, 7]
    assert mixed.attacks[1].relative_step_size == 0.5
    assert mixed.name == "one of PGD-7"
    assert mixed.with_settings(steps=4).attacks == (PGD(steps=4), PGD(steps=4, relative_step_size=0.5))
    with pytest.raises(TypeError, match="a step size for each of its 2 attacks"):
        mixed.with_settings(step_size=0.1)


def test_the_choice_depends_on_the_generator_alone() -> None:
    model, images, labels = LinearModel(torch.randn(1, 4, 4)), torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    mixed = MixedPGD((PGD(steps=1), PGD(steps=2), BlockPGD(steps=3, block_sides=(2, 1))))
    first, second = (mixed(model, images, labels, 0.1, torch.Generator().manual_seed(3)) for _ in range(2))
    some = mixed(model, images, labels, 0.1, torch.Generator().manual_seed(3), active=torch.tensor([True, False, True]))
    assert torch.equal(first, second)
    assert torch.equal(some, torch.stack([first[0], images[1], first[2]]))


@pytest.mark.parametrize("attacks", [(), (PGD(), PGD(norm="L2"))])
def test_attacks_must_be_at_least_one_and_of_one_norm(attacks: tuple[PGD, ...]) -> None:
    with pytest.raises(ValueError, match="attacks must be at least one and of one norm"):
        MixedPGD(attacks)


def test_trades_replaces_the_loss_of_every_attack_and_rejects_a_start_at_the_images(
    images: Tensor, labels: Tensor
) -> None:
    network, random = MNISTCNN(), torch.Generator()
    start = TRADES()(network, images, labels, PGD(steps=0), 0.3, random.manual_seed(3)).parts["kl"]
    mixed = MixedPGD((PGD(steps=8), PGD(steps=9)))
    assert TRADES()(network, images, labels, mixed, 0.3, random.manual_seed(3)).parts["kl"] > 2 * start
    with pytest.raises(ValueError, match="needs an attack with a random start"):
        TRADES().check(MixedPGD((PGD(), PGD(start=AtImage()))), network)


def test_the_config_trains(tmp_path: Path) -> None:
    config = ROOT / "experiments" / "mixed_attacks" / "mixed_attacks.yaml"
    toy = ["--data=tests.commands.toy.Toy", "--model.network=tests.commands.toy.Net", "--model.lr_scheduler=null"]
    short = ["--trainer.max_epochs=1", "--ramp.phases=[{epochs: 1, end_eps: 0.1, steps: 1}]", "--test_after_fit=false"]
    quick = ["--curve.num_images=0", "--images.num_images=0", "--trainer.accelerator=cpu", f"--runs_dir={tmp_path}"]
    main(["fit", "--config", str(config), *toy, *short, *quick])
    saved = (tmp_path / "trial_mixed_attacks" / "fit-0" / "config.yaml").read_text()
    assert "experiments.mixed_attacks.BlockPGD" in saved
