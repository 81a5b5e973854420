"""Where the fused train step is exact, known and not slower; elsewhere blocks compute their branches, silently."""

import importlib.util
import logging
from functools import cache
from types import ModuleType
from typing import Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils import _python_dispatch as python_dispatch
from torch.utils._device import DeviceContext

__all__ = [
    "have_hooks",
    "is_installed",
    "joins_graph",
    "leaves_graph",
    "load_step",
    "norms_are_known",
    "track",
    "will_fuse",
]

SMALLEST = 256  # positions of a batch; with fewer, a fused step's calls cost more than the branches
IN_GRAPH = ("cuda",)  # where a step is compiled rather than computed by our own loops
DTYPES = (torch.float32, torch.float64)
AUTOCAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of maps; parameters are float32
# torch's hooks of all modules; the function that asks for them all came after torch 2.5
GLOBAL_HOOKS = tuple(f"_global_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre"))
IS_INSTALLED = importlib.util.find_spec("numba") is not None
_logger = logging.getLogger(__name__)


def is_installed() -> bool:
    """Whether Numba, which compiles the fused step, can be found; importing it is left to :func:`load_step`."""
    return IS_INSTALLED


@cache
def load_step() -> Optional[ModuleType]:
    """The module :mod:`.step`, or None, with a line in the log, where Numba is missing, broken or does not compile."""
    try:
        from . import step
    except (ImportError, OSError) as error:  # llvmlite raises the latter where its library cannot be loaded
        _logger.warning(
            "Training branch by branch (%s). With Numba the same training takes about half of the time and a third of "
            'the memory on a CPU: pip install "rdpnet-timm[fused]"',
            error,
        )
        return None
    return step


def will_fuse(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module]) -> bool:
    """Whether a block with the branches ``convs`` and ``norms`` may compute ``x`` ``(N, C, H, W)`` as a fused step.

    Args:
        x: the block's input.
        convs: convolutions of the branches, of the classes that the block made and without hooks.
        norms: norms of the branches, likewise without hooks.
    """
    if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" or x.dim() != 4:
        return False  # also what is traced by fx or export, and fake tensors
    if not (_is_plain_eager() and norms_are_known(norms)):
        return False
    # The Depth-Block's positions are at least as many as those behind its stride.
    if x.shape[0] * x.shape[2] * x.shape[3] < SMALLEST:
        return False
    autocast = torch.is_autocast_enabled("cpu")
    if x.dtype not in (AUTOCAST_DTYPES if autocast else DTYPES):
        return False
    dtype = torch.float32 if autocast else x.dtype
    weights, affine = [conv.weight for conv in convs], [each for norm in norms for each in (norm.weight, norm.bias)]
    for parameter in weights + affine:
        if parameter.dtype != dtype or type(parameter) is not nn.Parameter:
            return False
    return _shapes_agree(x, convs, weights, affine)


def _shapes_agree(x: Tensor, convs: Sequence[nn.Conv2d], weights: Sequence[Tensor], affine: Sequence[Tensor]) -> bool:
    """Whether shapes are those that ``convs`` tell of; otherwise it is for the branches to raise an error."""
    if x.shape[1] != convs[0].in_channels:
        return False
    for conv, weight in zip(convs, weights):
        if weight.shape != (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size):
            return False
    return all(parameter.numel() == convs[0].out_channels for parameter in affine)


def leaves_graph(x: Tensor, norms: Sequence[nn.Module]) -> bool:
    """Whether a block that is being compiled is better left out of the graph, since ``x`` may be a fused step then.

    What can be asked while torch.compile looks on; the rest is :func:`will_fuse`'s, when the block is computed.
    """
    return (
        IS_INSTALLED
        and not _is_exporting()
        and x.device.type == "cpu"
        and x.shape[0] * x.shape[2] * x.shape[3] >= SMALLEST
        and norms_are_known(norms)
    )


def _is_exporting() -> bool:
    """``torch.compiler.is_exporting()``, which torch 2.11 answers with yes for all that torch.compile traces."""
    return getattr(torch.compiler, "_is_exporting_flag", True)  # a torch that cannot be asked: one graph


def joins_graph(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module]) -> bool:
    """Whether a block that is being compiled is best written as :mod:`.inductor` has it."""
    return (
        torch.compiler.is_dynamo_compiling()
        and not _is_exporting()
        and x.device.type in IN_GRAPH
        and norms_are_known(norms)
        and _shapes_agree(
            x, convs, [conv.weight for conv in convs], [each for norm in norms for each in (norm.weight, norm.bias)]
        )
        # one position is batch norm's error to raise
        and x.shape[0] * x.shape[2] * x.shape[3] > convs[0].stride[0] * convs[0].stride[1]
    )


def norms_are_known(norms: Sequence[nn.Module]) -> bool:
    """Whether these are torch's own batch norms, in training, with running statistics, scales and shifts."""
    return all(
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.weight is not None
        and norm.bias is not None
        and norm.running_mean is not None
        and norm.num_batches_tracked is not None
        for norm in norms
    )


def _is_plain_eager() -> bool:
    """Whether operations run as they are called: nobody traces, counts or transforms them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:  # torch has no public names for these
        is_transformed = torch._C._functorch.peek_interpreter_stack() is not None  # vmap, grad, jvp
        has_dual = torch.autograd.forward_ad._current_level >= 0
        is_watched = python_dispatch._get_current_dispatch_mode() is not None
        function_modes = [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]
    except AttributeError:  # a torch that cannot be asked
        return False
    if is_transformed or has_dual or is_watched:
        return False
    return all(type(mode) is DeviceContext for mode in function_modes)  # which is torch.set_default_device


def have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Whether calling one of ``modules`` would call a hook, or a forward of its own, as well."""
    if any(getattr(torch_module, hooks) for hooks in GLOBAL_HOOKS):
        return True
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        for module in modules
    )


@torch.no_grad()
def track(norms: Sequence[nn.Module], statistics: Tensor, count: int) -> None:
    """Update the running statistics of ``norms``, as batch norm does, from ``statistics`` of ``count`` positions.

    Args:
        norms: ``nn.BatchNorm2d``.
        statistics: ``(norms, 2, C)``: means and biased variances of this batch.
        count: positions in the batch.
    """
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    unbiased = torch.stack([statistics[:, 0], statistics[:, 1] * (count / (count - 1))], dim=1)
    values = unbiased.to(norms[0].running_mean.dtype).flatten(0, 1).unbind()
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    momenta = [1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum for norm in norms]
    if len(set(momenta)) == 1:
        torch._foreach_lerp_(buffers, values, momenta[0])
        return
    for i, momentum in enumerate(momenta):
        torch._foreach_lerp_(buffers[2 * i : 2 * i + 2], values[2 * i : 2 * i + 2], momentum)
