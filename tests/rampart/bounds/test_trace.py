import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rampart.bounds import Interval, box_logits, interval_logits, list_operations, list_relu_inputs
from rampart.networks import ResNet18


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x)) + x


def replay(last: Interval, point: Tensor) -> Tensor:
    """Compute a result for one point of the box, from the trace alone."""
    values: dict[object, Tensor] = {}

    def value_of(argument: object) -> object:
        if type(argument) in (list, tuple):
            return [value_of(item) for item in argument]  # type: ignore[attr-defined]
        return values.get(argument, argument) if isinstance(argument, type(last.operation)) else argument

    assert last.operation is not None
    for operation in list_operations(last.operation):
        if operation.function is None:
            values[operation] = point
            continue
        kwargs = {name: value_of(argument) for name, argument in operation.kwargs.items()}
        result = operation.function(*map(value_of, operation.args), **kwargs)
        values[operation] = result if operation.index is None else result[operation.index]
    return values[last.operation]


def test_a_trace_is_recorded_on_request_alone() -> None:
    box = torch.rand(2, 4)
    assert box_logits(Residual(), box, box).operation is None
    assert box_logits(Residual(), box, box, trace=True).operation is not None


def test_operations_follow_their_inputs_and_the_box_is_shared() -> None:
    box = torch.rand(2, 4)
    last = box_logits(Residual(), box, box, trace=True).operation
    assert last is not None
    operations = list_operations(last)
    names = [getattr(operation.function, "__name__", None) for operation in operations]
    assert names == [None, "linear", "relu", "add"]
    assert last.inputs == (operations[2], operations[0])


def test_a_trace_repeats_the_network_in_both_modes() -> None:
    torch.manual_seed(0)
    network = ResNet18(width=4).double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    for mode in (True, False):
        bounds = interval_logits(network.train(mode), images, 0.1, trace=True)
        torch.testing.assert_close(replay(bounds, images), network(images))


def test_changes_in_place_and_parts_are_recorded_in_plain_form() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 2
            x -= 1.0
            first, second = x.relu_().chunk(2, 1)
            return torch.cat([second, first.clamp(max=0.5)], 1)

    point = torch.rand(2, 4)
    bounds = box_logits(Parts(), point - 0.1, point + 0.1, clean=point, trace=True)
    assert torch.equal(replay(bounds, point), Parts()(point))
    assert bounds.clean is not None
    assert torch.equal(bounds.clean, Parts()(point))


def test_relu_inputs_are_listed_in_the_order_of_the_network() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    box = torch.rand(3, 4)
    bounds = box_logits(network, box - 0.1, box + 0.1, trace=True)
    assert bounds.operation is not None
    first, second = list_relu_inputs(bounds.operation)
    assert first.lower.shape == (3, 5)
    assert second.upper.shape == (3, 6)
    expected = network[0](Interval(box - 0.1, box + 0.1))
    assert torch.equal(first.lower, expected.lower)
    assert torch.equal(second.upper, network[2](F.relu(expected)).upper)
