"""Section ``agreement``: logits, gradients and adversarial images against float64 and float32 on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accelerator_sections.attack_cases import (
    Case,
    build_case,
    execute,
    may_capture,
    note_fallbacks,
    use_precision,
)
from benchmarks.accelerator_sections.setting import ROOT, Rows, Setting
from benchmarks.attack_step import compare_images
from benchmarks.evaluation import load_test_images
from benchmarks.mnist import load_trained
from rampart.attacks import APGD, FAB, PGD, AtImage, Attack, Square
from rampart.attacks.input_gradient import misclassified, predict
from rampart.kernels import Execution, full_float32
from rampart.networks import MNISTCNN

WEIGHTS = ROOT / "pretrained" / "mnist" / "iat" / "weights.safetensors"
EPS, EPS_L2 = 0.4, 3.0  # of these weights, where attacks fool part of the images
FORWARD = 1.0  # length of the step whose direction is compared, L2


def measure(setting: Setting, rows: Rows) -> None:
    """Add rows to the tables ``gradients`` and ``adversarial images``."""
    for kind in dict.fromkeys(kind for kind, _ in setting.size.cases):
        images = setting.size.agreement_images
        # ResNet-18 in float64 is slow on a CPU.
        case = build_case(kind, min(images, 16) if kind == "ResNet-18" else images, setting)
        compare_gradients(case, setting, rows)
    compare_attacks(setting, rows)


def compare_gradients(case: Case, setting: Setting, rows: Rows) -> None:
    """Compare logits and gradient directions with float64 on the CPU, one row per precision, eager and captured.

    The gradient is that of the cross-entropy with respect to the images. An attack of one L2 step moves along it, so
    its direction is read from that attack's result, which has captured forms too.
    """
    images = 0.4 + 0.2 * case.images  # no pixel reaches the bounds of the box
    logits, direction = compute_exactly(case, images)
    for capture in (False, True):
        for precision in setting.size.precisions:
            options = Execution(capture=may_capture(capture, setting), attack_precision=precision)
            attack = PGD(norm="L2", steps=1, step_size=FORWARD, start=AtImage())
            try:
                with execute(options, setting.device), note_fallbacks(f"{case.kind}, {precision}", rows):
                    for _ in range(1 + capture):  # short attacks are captured the second time
                        adv = attack(case.ours, images, case.labels, 2 * FORWARD)
                    step = (adv - images).double().cpu()
                with use_precision(precision, setting.device), torch.no_grad():
                    found = case.ours(images).double().cpu()
            except Exception as error:  # one form's failure must not end the others
                rows.leave_out(f"gradients, {case.kind}, {precision}", error)
                continue
            ours = step / FORWARD
            flipped = ours.sign() != direction.sign()
            relative = direction.abs() / direction.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-300)
            rows.add(
                "gradients",
                network=case.kind,
                images=len(images),
                form=name_form(capture, setting),
                precision=precision,
                logits_largest_error=(found - logits).abs().max().item(),
                logits_relative_error=((found - logits).abs().max() / logits.abs().max()).item(),
                gradient_relative_error=((ours - direction).abs().max() / direction.abs().max()).item(),
                other_signs=flipped.double().mean().item(),
                largest_gradient_of_other_sign=relative[flipped].max().item() if flipped.any() else 0.0,
            )


def name_form(capture: bool, setting: Setting) -> str:
    """Return the name of a form in tables."""
    if not capture:
        return "eager"
    return "captured (eager on the CPU)" if setting.on_cpu else "captured"


def compute_exactly(case: Case, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``(N, 10)`` and the gradients divided by their L2 norms, in float64 on the CPU."""
    network = build_plain(case).double()
    inputs = images.double().cpu().requires_grad_()
    logits = network(inputs)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, case.labels.cpu(), reduction="sum"), inputs)
    length = grad.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
    return logits.detach(), grad / length


def build_plain(case: Case) -> nn.Module:
    """Return a copy of the network as published, on the CPU."""
    plain = type(case.plain)()
    plain.load_state_dict(case.plain.state_dict())
    return plain.eval()


def list_attacks(steps: int) -> dict[str, Attack]:
    """Return the attacks to compare, by name."""
    return {
        "FGSM": PGD(steps=1, relative_step_size=1.0, start=AtImage()),
        "PGD": PGD(steps=steps, start=AtImage()),
        "PGD, random start": PGD(steps=steps),
        "PGD, L2": PGD(norm="L2", steps=steps),
        "PGD, best iterate": PGD(steps=steps, iterate="best"),
        "PGD, 2 restarts": PGD(steps=steps, restarts=2),
        "PGD, stop when fooled": PGD(steps=steps, stop_when_fooled=True),
        "APGD-CE": APGD(steps=steps),
        "APGD-T": APGD(steps=steps, targets=3),
        "FAB": FAB(steps=steps, targets=3),
        "Square": Square(queries=20 * steps),
    }


def compare_attacks(setting: Setting, rows: Rows) -> None:
    """Compare each attack's images, captured against eager, and its robust counts with those on the CPU."""
    torch.manual_seed(setting.seed)
    loader = load_test_images(setting.data_dir, setting.size.agreement_images)
    images, labels = loader.images.float() / 255, loader.labels
    network = load_trained(MNISTCNN(), WEIGHTS)
    on_device = load_trained(MNISTCNN(), WEIGHTS).to(setting.device)
    with full_float32(setting.device):
        for name, attack in list_attacks(setting.size.attack_steps).items():
            try:
                eager = attack_once(attack, on_device, images, labels, setting, Execution(capture=False))
                options = Execution(capture=may_capture(True, setting))
                with note_fallbacks(name, rows):
                    for _ in range(1 if setting.on_cpu else 2):  # short attacks are captured the second time
                        captured = attack_once(attack, on_device, images, labels, setting, options)
                on_cpu = eager
                if not setting.on_cpu:
                    on_cpu = attack_once(attack, network, images, labels, setting, Execution(capture=False), "cpu")
            except Exception as error:  # one attack's failure must not end the others
                rows.leave_out(f"adversarial images, {name}", error)
                continue
            counts = {
                f"robust_{where}": int((~misclassified(predict(network, adv), labels)).sum())
                for where, adv in (("eager", eager), ("captured", captured), ("cpu", on_cpu))
            }
            equal = compare_images(eager, captured) or {}
            rows.add("adversarial images", attack=name, images=len(labels), **equal, **counts)


def attack_once(
    attack: Attack,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    setting: Setting,
    execution: Execution,
    device: str | None = None,
) -> Tensor:
    """Return an attack's images, on the CPU; random numbers have the section's seed, on the device."""
    device = device or setting.device
    generator = torch.Generator(device).manual_seed(setting.seed)
    eps = EPS_L2 if attack.norm == "L2" else EPS
    with execution.evaluation(device):
        return attack(network, images.to(device), labels.to(device), eps, generator).cpu()
