"""From the train form to the deploy form: a model in memory, a checkpoint on disk."""

from copy import deepcopy

from timm.utils import reparameterize_model
from torch import nn

__all__ = ["reparameterize"]


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
    if not inplace:
        model = deepcopy(model)
    if callable(getattr(model, "reparameterize", None)):
        model.reparameterize()
    return reparameterize_model(model, inplace=True)
