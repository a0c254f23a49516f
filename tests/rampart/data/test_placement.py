from types import SimpleNamespace

import pytest
import torch

from rampart.data import free_memory, leaves_room, move_tensor


def test_a_cpu_has_no_free_memory_to_hold_images_for_a_device() -> None:
    assert free_memory(torch.device("cpu")) is None
    assert not leaves_room(torch.device("cpu"), torch.zeros(1))


def test_tensors_may_take_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    asked = []

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 400, 1000

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(mem_get_info=mem_get_info))
    images, labels = torch.zeros(92, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    assert leaves_room(device, images, labels)
    assert not leaves_room(device, images, labels, torch.zeros(1, dtype=torch.uint8))
    assert asked == [device, device]
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace())
    assert not leaves_room(device, labels)


def test_a_tensor_that_is_there_already_is_not_copied() -> None:
    tensor = torch.rand(3)
    assert move_tensor(tensor, torch.device("cpu")) is tensor
    assert move_tensor(tensor, torch.device("meta")).device.type == "meta"
