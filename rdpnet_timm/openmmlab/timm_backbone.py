"""timm models as OpenMMLab backbones: the peers of the paper's Tables 6 and 7 in the same two frameworks."""

from functools import partial
from typing import Any, Optional, Sequence, Tuple

import timm
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models import mobilenetv3
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .checkpoint import init_weights

__all__ = ["TimmBackbone"]


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """The feature maps of a timm model.

    Args:
        model_name: name in timm, e.g. ``mobilenetv2_050``.
        out_indices: maps to return, as timm's ``features_only`` counts them.
        output_stride: stride of the last map, where the model has one to give.
        pretrained: timm's weights, downloaded; ``init_cfg`` loads a checkpoint instead.
        norm_eval: keep batch norms in evaluation mode while training.
        init_cfg: mmengine's initialisation; ``Pretrained`` takes checkpoints of timm's train.py. Without one, the
            weights stay as timm initialises them.
        **kwargs: further arguments of ``timm.create_model``; MobileNetV3 takes a ``channel_multiplier``.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: Optional[int] = None,
        pretrained: bool = False,
        norm_eval: bool = False,
        init_cfg: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        if output_stride is not None:
            kwargs["output_stride"] = output_stride
        self.norm_eval = norm_eval
        create = partial(timm.create_model, model_name)
        if model_name.startswith("mobilenetv3_") and "channel_multiplier" in kwargs:
            # timm's variants fix the width; what they call does not
            create = partial(mobilenetv3._gen_mobilenet_v3, model_name)
        self.timm_model = create(pretrained=pretrained, features_only=True, out_indices=tuple(out_indices), **kwargs)
        self.channels = self.timm_model.feature_info.channels()

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to the maps ``out_indices``."""
        return tuple(self.timm_model(x))

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, once; see :func:`rdpnet_timm.openmmlab.checkpoint.init_weights`."""
        init_weights(self, self.timm_model)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the mode; with ``norm_eval`` batch norms stay in evaluation mode."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
