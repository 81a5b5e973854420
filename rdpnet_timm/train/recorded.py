"""A training step recorded on a GPU as a CUDA graph, and replayed: one launch in place of a thousand.

A step of a small network is a long list of short kernels, which a GPU computes faster than a host can start them one by
one. What is recorded is the same list, so the numbers are the same; what decides a step (its pictures, its learning
rate, the seeds of its generators) is written beforehand to where the recorded kernels read it.
"""

from typing import Callable, Optional, Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd

__all__ = ["Recorded", "update"]

WARM_UP = 3  # calls before the recording: libraries choose their kernels and take their memory, torch.compile compiles


class Recorded:
    """A function without arguments and result, whose every call does the same on the same tensors.

    Its calls must come in one stream, which is not the device's default one.
    """

    def __init__(
        self, function: Callable[[], None], generators: Sequence[torch.Generator], enabled: bool = True
    ) -> None:
        """Record ``function`` or, where that is not ``enabled``, call it.

        ``generators`` are those from which it draws; they can be seeded between calls, as for any function.
        """
        self.function = function
        self.generators = generators
        self.enabled = enabled
        self.calls = 0
        self.graph: Optional[torch.cuda.CUDAGraph] = None

    def __call__(self) -> None:
        """Do it once more."""
        self.calls += 1
        if not self.enabled or self.calls <= WARM_UP:
            self.function()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                self.graph.register_generator_state(generator)
            # other streams go on with their work meanwhile
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self.function()
        self.graph.replay()


@torch.no_grad()
def update(optimizer: torch.optim.SGD, rate: Tensor) -> None:
    """``optimizer.step()`` at the learning rate that a tensor holds, which can change after this was recorded.

    The first step of a momentum, which begins it, is the optimizer's own, at its own rate, and not to be recorded.

    torch's fused kernel reads the rate from memory. It asks parameters and gradients for the same strides, in
    dimensions of size 1 as well, where they can differ: hence they go into it flat, in the order of their memory.
    """
    if not optimizer.state and any(group["momentum"] for group in optimizer.param_groups):
        optimizer.step()
        return
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        buffers = [optimizer.state[parameter].get("momentum_buffer") for parameter in parameters]
        if any(buffer is None for buffer in buffers) and group["momentum"]:
            raise RuntimeError(
                "a parameter without a gradient in the first step has one now: its momentum has not begun"
            )
        sgd(
            [_flat(parameter) for parameter in parameters],
            [_flat(parameter.grad) for parameter in parameters],
            [buffer if buffer is None else _flat(buffer) for buffer in buffers],
            fused=True,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=rate,
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )


def _flat(tensor: Tensor) -> Tensor:
    """All of a tensor in channels_last as one dimension of the same memory."""
    return tensor.permute(0, 2, 3, 1).view(-1) if tensor.dim() == 4 else tensor.view(-1)
