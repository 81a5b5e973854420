"""verify() measures what it says, and leaves the models as they were."""

import math

import pytest
import timm
import torch
from torch import nn

from rdpnet_timm import Verification, verify


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> "dict[str, list[torch.Tensor]]":
        return {"maps": [x, x * self.factor]}


def test_it_finds_the_largest_difference_in_any_output() -> None:
    x = torch.tensor([[1.0, -4.0]]).reshape(1, 2, 1, 1)
    found = verify(Scaled(2.0), Scaled(2.5), x)
    assert (found.max_difference, found.max_output, found.relative) == (2.0, 8.0, 0.25)
    assert (
        str(found)
        == "outputs differ by at most 2.00e+00, which is 2.50e-01 of the largest, 8.00e+00 (1x2x1x1, float32)"
    )


def test_it_compares_in_evaluation_and_restores_every_mode() -> None:
    model = timm.create_model("rdpnet_025_cifar", drop_rate=0.5).train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    assert verify(model, model).max_difference == 0, "dropout and batch statistics are off"
    assert [module.training for module in model.modules()] == modes
    assert verify(model, model).input_shape == (2, 3, 32, 32)
    assert verify(timm.create_model("rdpnet_025_cifar", in_chans=1), timm.create_model("rdpnet_025_cifar", in_chans=1))


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 10\).*\(2, 3\)"):
        verify(timm.create_model("rdpnet_025_cifar"), timm.create_model("rdpnet_025_cifar", num_classes=3))


@pytest.mark.parametrize(("difference", "largest"), [(2e-5, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, 0.0)])
def test_a_difference_above_the_tolerance_or_no_number_is_not_accepted(difference: float, largest: float) -> None:
    with pytest.raises(RuntimeError, match="not the same function"):
        Verification(difference, largest, (1, 3, 8, 8), torch.float32).require(1e-5)
    Verification(1e-6, 1.0, (1, 3, 8, 8), torch.float32).require(1e-5)
