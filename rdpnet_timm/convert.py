"""From the train form to the deploy form: any model in memory whose blocks know how."""

import inspect
from copy import deepcopy
from typing import Callable, Optional

from torch import nn

__all__ = ["deploy_method", "reparameterize"]


def reparameterize(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Change a model to its deploy form, in which every block is one convolution.

    The deploy form computes the evaluation-mode function of the model, whatever mode the model is in. It works for
    every model whose modules offer ``reparameterize()``, ``fuse()`` or ``switch_to_deploy()``, a model of which
    RDPNet is a part, or a single block; a model already in the deploy form is returned as it is.

    Args:
        model: the model as trained; untouched unless ``inplace``.
        inplace: convert ``model`` itself rather than a copy.

    Returns:
        The deploy form, with the dtype, device, memory format and training flag of ``model``.
    """
    return _merged(model if inplace else deepcopy(model))


def deploy_method(module: nn.Module) -> Optional[Callable[[], Optional[nn.Module]]]:
    """The method by which a module changes to its deploy form; None where it has none.

    A method that cannot be called without arguments is another one: the ``fuse`` of mmdet's FPG neck adds up feature
    maps. So is the ``reparameterize`` of mmpretrain's blocks, beside ``switch_to_deploy``: it returns a kernel.
    """
    for name in ("fuse", "switch_to_deploy", "reparameterize"):
        method = getattr(module, name, None)
        if callable(method) and not isinstance(method, nn.Module) and _takes_no_arguments(method):
            return method  # a child module of that name is a layer
    return None


def _takes_no_arguments(method: Callable[..., object]) -> bool:
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _merged(module: nn.Module) -> nn.Module:
    """``module`` in its deploy form, itself or what its ``fuse()`` returns in its place."""
    method = deploy_method(module)
    if method is not None:
        merged = method()
        module = merged if isinstance(merged, nn.Module) else module
    for name, child in module.named_children():
        setattr(module, name, _merged(child))
    return module
