"""What several test files share: models with trained-looking batch norms, and the settings of hypothesis."""

import os

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)  # two workers share two cores
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def randomize_norms(model: nn.Module, seed: int = 0, decades: float = 1.0) -> nn.Module:
    """Give every batch norm random statistics and affine parameters, scales of both signs over ``decades`` decades."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                sign = uniform(module.weight, -1, 1).sign()
                module.weight.copy_(sign * 10 ** uniform(module.weight, -decades / 2, decades / 2))
                module.bias.copy_(uniform(module.bias, -1, 1))
                module.running_mean.copy_(uniform(module.running_mean, -1, 1))
                module.running_var.copy_(10 ** uniform(module.running_var, -decades / 2, decades / 2))
    return model


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
