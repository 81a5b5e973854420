"""What the tests of the fused train step share: one step either way, and how far two steps are apart."""

import copy
import math
from typing import Dict, List, Optional

import pytest
import torch
from torch import Tensor, nn

from rdpnet_timm.blocks import set_fused

pytest.importorskip("numba")  # skips whoever imports this module
from rdpnet_timm.fused import step


def excited(module: nn.Module) -> nn.Module:
    """``module`` in training, its norms with scales of both signs and shifts."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return module.train()


def branch_by_branch(module: nn.Module) -> nn.Module:
    return set_fused(copy.deepcopy(module), False)


def train_step(module: nn.Module, x: Tensor, gradient: Tensor) -> Dict[str, Tensor]:
    """Output, gradient of the input, gradients of parameters and buffers after one step, by name."""
    x = x.detach().requires_grad_(not hasattr(module, "stem") and type(module).__name__ != "RepVGGBlock")
    module.zero_grad()
    out = module(x)
    out.backward(gradient)
    results = {"output": out.detach()}
    if x.grad is not None:
        results["input"] = x.grad
    results.update({f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None})
    results.update({name: buffer.clone() for name, buffer in module.named_buffers()})
    return results


def differences(actual: Dict[str, Tensor], expected: Dict[str, Tensor]) -> Dict[str, float]:
    """Largest difference of each result as a fraction of its largest value, which counts as at least 0.001.

    Where there is NaN on either side the difference is infinite: comparisons and ``max`` would pass over it.
    """
    assert actual.keys() == expected.keys()
    found = {}
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        scale = value.double().abs().max().clamp_min(1e-3)
        difference = ((actual[name].double() - value.double()).abs().max() / scale).item()
        found[name] = math.inf if math.isnan(difference) else difference
    return found


class Steps:
    """Counts the fused steps that are taken while it is in place."""

    def __init__(self, monkeypatch) -> None:
        self.taken: List[str] = []
        for name in ("depth_step", "point_step", "stem_step"):
            monkeypatch.setattr(step, name, self._counting(name, getattr(step, name)))

    def _counting(self, name, function):
        def counted(*arguments, **options):
            self.taken.append(name)
            return function(*arguments, **options)

        return counted

    def count(self, module: nn.Module, x: Optional[Tensor] = None) -> int:
        """How many steps ``module`` takes for ``x``."""
        before = len(self.taken)
        module(torch.randn(4, 3, 16, 16) if x is None else x)
        return len(self.taken) - before
