from typing import Any

import pytest
import torch

from rampart.kernels import full_float32

backends: Any = torch.backends


def settings() -> list[Any]:
    """Return every setting, from both of torch's interfaces; None if torch raises."""

    def read(setting: Any) -> Any:
        try:
            return setting()
        except RuntimeError:
            return None

    kinds = [(a, b) for a in ("cuda", "mkldnn") for b in ("all", "matmul", "conv", "rnn")]
    return [
        *(torch._C._get_fp32_precision_getter(*kind) for kind in kinds),
        read(lambda: backends.cuda.matmul.allow_tf32),
        read(lambda: backends.cudnn.allow_tf32),
        read(torch.get_float32_matmul_precision),
    ]


@pytest.fixture(autouse=True)
def _restore_settings() -> Any:
    before, legacy = settings(), torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(legacy)
    backends.cudnn.allow_tf32 = True
    backends.mkldnn.matmul.fp32_precision = backends.cuda.matmul.fp32_precision = "none"
    assert settings() == before


@pytest.mark.parametrize(
    "prepare",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(backends.cudnn, "allow_tf32", False),
        lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    ],
)
def test_precision_is_full_inside_and_restored_afterwards(prepare: Any) -> None:
    prepare()
    before = settings()
    with full_float32("cpu"):
        assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "ieee"
        assert backends.cudnn.rnn.fp32_precision == backends.mkldnn.matmul.fp32_precision == "ieee"
        assert not backends.cuda.matmul.allow_tf32
        assert not backends.cudnn.allow_tf32
        with backends.cudnn.flags(enabled=False):
            pass
    assert settings() == before
    with pytest.raises(KeyError), full_float32("cpu"):
        raise KeyError
    assert settings() == before


def test_autocast_is_disabled_inside_and_restored_afterwards() -> None:
    linear = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with full_float32("cpu"):
            assert linear(torch.rand(2, 4)).dtype == torch.float32
        assert linear(torch.rand(2, 4)).dtype == torch.bfloat16
    with full_float32("cpu"), full_float32("cpu"):
        pass
