"""The networks that are compared, at any width: from timm where it has them, else from torchvision."""

from typing import Any, Callable, List, Tuple

import timm
import torch
from timm.models.efficientnet import _gen_mobilenet_v1, _gen_mobilenet_v2
from torch import Tensor, nn
from torchvision import models as torchvision_models

from ..rdpnet import RDPNet

__all__ = ["Trunk", "cifar_form", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "rdpnet", "shufflenet_v2", "stack"]


def rdpnet(width: float, **kwargs: Any) -> nn.Module:
    """RDPNet at a width multiplier, in its train form."""
    return RDPNet(width, **kwargs)


def mobilenet_v1(width: float, **kwargs: Any) -> nn.Module:
    """MobileNetV1 of timm at a width multiplier."""
    return _gen_mobilenet_v1("mobilenetv1_100", width, **kwargs)  # timm's entry points fix the width


def mobilenet_v2(width: float, **kwargs: Any) -> nn.Module:
    """MobileNetV2 of timm at a width multiplier."""
    return _gen_mobilenet_v2("mobilenetv2_100", width, **kwargs)


def mobilenet_v3(size: str, width: float, **kwargs: Any) -> nn.Module:
    """MobileNetV3 of torchvision, ``size`` 'small' or 'large', at a width multiplier."""
    return torchvision_models.get_model(f"mobilenet_v3_{size}", width_mult=width, **kwargs)


def shufflenet_v2(width: float, **kwargs: Any) -> nn.Module:
    """ShuffleNetV2 of torchvision at width 0.5, 1.0, 1.5 or 2.0."""
    return torchvision_models.get_model(f"shufflenet_v2_x{width:.1f}".replace(".", "_"), **kwargs)


def timm_model(name: str, **kwargs: Any) -> nn.Module:
    """Any network that timm has, with random weights."""
    return timm.create_model(name, **kwargs)


def cifar_form(model: nn.Module) -> nn.Module:
    """Set the first two strided layers, in the order of execution, to stride 1, in place, and return the model.

    A network that divides 224 by 32 then divides a CIFAR image by 8, to a last map of 4x4. At these strides the
    MACs of the MobileNets are the paper's of Table 4, to a few per cent. Convolutions of one input are branches of a
    layer.
    """
    strided: List[Tuple[Tensor, List[nn.Module]]] = []

    def record(conv: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
        if not strided or strided[-1][0] is not inputs[0]:
            strided.append((inputs[0], []))
        strided[-1][1].append(conv)

    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1]
    hooks = [conv.register_forward_pre_hook(record) for conv in convs]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    for _, branches in strided[:2]:
        for conv in branches:
            conv.stride = (1, 1)
    return model


class Trunk(nn.Module):
    """A classifier without pooling and classifier: ``(N, 3, H, W)`` to its last map, as detectors use it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The last map."""
        features: Callable[[Tensor], Tensor] = getattr(self.model, "forward_features", None) or self.model.features
        return features(x)


class _Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layers(x) + x)


def stack(depth: int, per_block: int, channels: int, separable: bool) -> nn.Module:
    """``depth`` layers of 3x3 convolution and ReLU, with a shortcut around every ``per_block`` of them, 0 being none.

    The paper's Figure 2 calls these conv_0, conv_2 and conv_3. A separable layer is a depthwise 3x3 and a pointwise
    convolution, each with its ReLU; layers that do not fill a block stand behind the others without a shortcut.
    """

    def layer(with_act: bool) -> nn.Sequential:
        if separable:
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            convs = [depthwise, nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)]
        else:
            convs = [nn.Conv2d(channels, channels, 3, padding=1)]
        return nn.Sequential(*convs, *([nn.ReLU(inplace=True)] if with_act else []))

    blocks = depth // per_block if per_block else 0
    residual = [_Residual(*(layer(index + 1 < per_block) for index in range(per_block))) for _ in range(blocks)]
    return nn.Sequential(*residual, *(layer(True) for _ in range(depth - blocks * per_block)))
