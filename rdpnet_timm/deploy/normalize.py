"""Normalisation as part of the network, so that the artefact takes plain pixels; exact, borders included.

A network normalises a pixel to ``(x - mean) / std`` before its first convolution, which pads with zeros. The division
folds into the kernel, and so does the subtraction everywhere but at the border: a zero there means "as bright as the
mean", which in plain pixels is ``mean``, one value a channel. There are three exact ways out, see :data:`BORDERS`.
"""

from contextlib import suppress
from copy import deepcopy
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .equalization import NotStraight, scale_inputs, straight_path
from .equalization import kernel_of as _kernel_of

__all__ = ["BORDERS", "fold_normalization"]


class _SubtractedMean(nn.Module):
    """The mean is subtracted in front, and the convolution pads with zeros as before: one cheap node, of any size."""

    def __init__(self, conv: nn.Conv2d, mean: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x - self.mean)


class _PaddedWithMean(nn.Module):
    """Each channel is padded with its mean, and the convolution does not pad: as ONNX's Pad knows one value only, the
    channels are split, padded and joined.
    """

    def __init__(self, conv: nn.Conv2d, mean: Tensor) -> None:
        super().__init__()
        vertical, horizontal = conv.padding
        self.margins = [horizontal, horizontal, vertical, vertical]
        self.values = mean.tolist()
        with torch.no_grad():
            window = mean.reshape(1, -1, 1, 1).expand(1, -1, *conv.kernel_size)
            conv.bias -= F.conv2d(window, conv.weight, groups=conv.groups).flatten()
        conv.padding = (0, 0)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        channels = x.split(1, dim=1)
        return self.conv(torch.cat([F.pad(c, self.margins, value=v) for c, v in zip(channels, self.values)], dim=1))


class _BiasMap(nn.Module):
    """The convolution pads with zeros, and the bias is a map, which differs at the border: for one image size only."""

    def __init__(self, conv: nn.Conv2d, mean: Tensor, size: Tuple[int, int]) -> None:
        super().__init__()
        with torch.no_grad():
            bias = conv(-mean.reshape(1, -1, 1, 1).expand(1, -1, *size))
        conv.bias = None
        self.conv = conv
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.bias


class _Normalized(nn.Module):
    """What works for every network: normalisation as it is, in front."""

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.training = model.training  # TorchScript freezes what is in evaluation mode
        self.model = model
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))
        self.register_buffer("factor", 1 / std.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) * self.factor)


BORDERS = ("subtract", "pad", "map")


def fold_normalization(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    pixel_range: float = 1.0,
    border: str = "subtract",
    size: Tuple[int, int] = (224, 224),
) -> nn.Module:
    """A copy of ``model`` that takes plain pixels ``(N, C, H, W)`` of 0 to ``pixel_range``.

    The first convolution of a straight path takes the normalisation in; any other model gets it as two nodes in front.

    Args:
        model: the model, in its deploy form.
        mean: of the channels, for pixels of 0 to 1.
        std: of the channels, for pixels of 0 to 1.
        pixel_range: the value of white, 1 or 255.
        border: 'subtract' the mean in front and pad with zero; 'pad' with the mean, explicitly; or zero padding and a
            bias 'map', for images of ``size``.
        size: ``(height, width)``, for 'map' only.

    Raises:
        ValueError: another ``border``, or a length of ``mean`` or ``std`` that is not that of the channels.
    """
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, got '{border}'")
    model = deepcopy(model)
    parameter = next(model.parameters())
    means, stds = (torch.tensor(values, dtype=torch.float64, device=parameter.device) for values in (mean, std))
    means, stds = means * pixel_range, stds * pixel_range
    conv: Optional[nn.Module] = None
    with suppress(NotStraight):
        conv = straight_path(model)[0]
    if not isinstance(conv, nn.Conv2d) or not (isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"):
        return _Normalized(model, means.to(parameter), stds.to(parameter))
    if not conv.in_channels == len(means) == len(stds):
        raise ValueError(f"expected mean and std of {conv.in_channels} channels, got {list(mean)} and {list(std)}")
    name = next(name for name, module in model.named_modules() if module is conv)
    kernel = scale_inputs(_kernel_of(conv), 1 / stds, conv.groups)
    with torch.no_grad():
        conv.weight.copy_(kernel.weight)
        if conv.bias is None:
            conv.bias = nn.Parameter(kernel.bias.to(conv.weight))
    means = means.to(parameter)
    folded: nn.Module
    if border == "subtract":
        folded = _SubtractedMean(conv, means)
    elif border == "pad":
        folded = _PaddedWithMean(conv, means)
    else:
        folded = _BiasMap(conv, means, size)
    folded.training = conv.training
    model.set_submodule(name, folded)
    return model
