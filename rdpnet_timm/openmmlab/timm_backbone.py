"""timm models as OpenMMLab backbones: the peers of the paper's Tables 6 and 7 in the same two frameworks."""

from functools import partial
from typing import Any, List, Optional, Sequence, Tuple

import timm
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models import mobilenetv3
from torch import Tensor, nn
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
        frozen_stages: -1 freezes nothing, k all that leads to the map k, which is of stride 2^(k+1) in most models: no
            gradients, and its batch norms in evaluation mode.
        norm_eval: keep batch norms in evaluation mode while training.
        init_cfg: mmengine's initialisation; ``Pretrained`` takes checkpoints of timm's train.py. Without one, the
            weights stay as timm initialises them.
        **kwargs: further arguments of ``timm.create_model``; MobileNetV3 takes a ``channel_multiplier``.

    Raises:
        ValueError: ``frozen_stages`` is out of its range, or it cannot be told which modules lead to that map.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        output_stride: Optional[int] = None,
        pretrained: bool = False,
        frozen_stages: int = -1,
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
        self.frozen_stages = frozen_stages
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to the maps ``out_indices``."""
        return tuple(self.timm_model(x))

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, once; see :func:`rdpnet_timm.openmmlab.checkpoint.init_weights`."""
        init_weights(self, self.timm_model)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Set the mode; frozen stages, and with ``norm_eval`` all batch norms, stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> List[nn.Module]:
        """The innermost modules, in the order of the model, up to the end of the one that makes the map."""
        maps = self.timm_model.feature_info.info
        if self.frozen_stages not in range(-1, len(maps)):
            raise ValueError(f"frozen_stages must be -1 (none) or 0 to {len(maps) - 1}, got {self.frozen_stages}")
        if self.frozen_stages < 0:
            return []
        last = maps[self.frozen_stages]["module"]
        places = tuple(f"{name}." for name in (last, last.replace(".", "_")))  # as timm's two ways to features name it
        frozen: List[nn.Module] = []
        is_last = False
        for name, module in self.timm_model.named_modules():
            if is_last and not f"{name}.".startswith(places):
                return frozen
            is_last = is_last or f"{name}.".startswith(places)
            if not list(module.children()) or isinstance(module, _BatchNorm):  # timm's have their activation inside
                frozen.append(module)
        if not is_last:
            raise ValueError(
                f"frozen_stages={self.frozen_stages} freezes what leads to '{last}', which is no module of the "
                f"{type(self.timm_model).__name__} with these out_indices"
            )
        return frozen
