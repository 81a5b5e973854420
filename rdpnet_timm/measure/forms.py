"""The two forms in which every contestant is measured, ours and the peers' alike.

The *train form* is the network as trained, in evaluation mode. The *deploy form* has its branches merged where it
offers that, and every batch norm behind a convolution folded into it.
"""

from copy import deepcopy
from typing import Any, List, Tuple

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..convert import reparameterize
from .difference import compare_outputs, verify

__all__ = ["deploy_form", "fold_norms", "settle_norms"]

_TOLERANCE = 1e-4  # relative; computed in float64, but some of timm's blocks merge their branches in float32


def settle_norms(model: nn.Module, x: Tensor) -> nn.Module:
    """Give every batch norm, in place, the statistics of the images ``x (N, C, H, W)``, and return the model.

    With the statistics of a fresh network activations fade or grow with depth, down to denormal numbers, which a CPU
    computes slowly: a time that no trained network would show.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]  # OpenMMLab's are no 2d
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(x)
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum
    return model


def fold_norms(model: nn.Module, x: Tensor) -> nn.Module:
    """Fold, in place, every batch norm whose input is the output of a convolution into it, and return the model.

    The pairs are found by running the model on ``x (N, C, H, W)``, so it need not be traceable.
    """
    made: List[Tuple[Tensor, int, nn.Module]] = []
    pairs: List[Tuple[nn.Module, nn.Module]] = []

    def remember(conv: nn.Module, _: Any, output: Tensor) -> None:
        made.append((output, output._version, conv))

    def match(norm: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
        # a version behind the present one: an in-place operation stands between convolution and norm
        pairs.extend((conv, norm) for out, version, conv in made if out is inputs[0] and out._version == version)

    hooks = [m.register_forward_hook(remember) for m in model.eval().modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(match) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, child = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), child, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    return model


def deploy_form(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy of ``model`` in its deploy form: reparameterised, norms folded; the model itself where nothing is to do.

    Args:
        model: any network, in evaluation mode.
        x: images ``(N, C, H, W)`` to find the norms by, and to check the result with.

    Raises:
        RuntimeError: the form computes something else than the model does.
    """
    dtype, trained = x.dtype, deepcopy(model).double()
    deployed = reparameterize(trained).double()
    merged = verify(trained, deployed, x)
    deployed = fold_norms(deployed, x.double())
    if [type(module) for module in deployed.modules()] == [type(module) for module in model.modules()]:
        return model
    for verification in (merged, compare_outputs(trained, deployed, x)):
        if not verification.relative <= _TOLERANCE:
            raise RuntimeError(
                f"the deploy form of {type(model).__name__} is not the network as trained: {verification}"
            )
    return deployed.to(dtype)
