"""RDPNet as an OpenMMLab backbone: the timm model, with the arguments that mm users expect."""

from copy import deepcopy
from functools import partial
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..rdpnet import RDPNet as TimmRDPNet
from .checkpoint import init_weights

__all__ = ["RDPNet"]


@MODELS.register_module()
class RDPNet(TimmRDPNet, BaseModule):
    """RDPNet (the paper's Table 2) without its classifier, under the parameter names of the timm model.

    A checkpoint of timm's train.py goes in by ``init_cfg=dict(type='Pretrained', checkpoint=...)``, EMA weights where
    it has them, and ``backbone.state_dict()`` goes into ``timm.create_model('rdpnet_...', num_classes=0)``.

    Args:
        widen_factor: width multiplier alpha; the paper's are 0.25, 0.5, 0.75, 1, 1.25 and 1.5.
        out_indices: maps to return, 0 for the stem, 1 to 4 for the stages: at alpha = 1 of 64, 64, 128, 256 and 1280
            channels and of stride 2, 4, 8, 16 and 32.
        output_stride: stride of the last map, 8, 16 or 32; strides beyond it become dilation (DeepLab).
        strides: stride of the stem and of each stage; the CIFAR form has ``(1, 1, 2, 2, 2)``.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages: no gradients, and their batch
            norms in evaluation mode.
        norm_cfg: a batch norm, e.g. ``dict(type='SyncBN', requires_grad=True)``.
        norm_eval: keep all batch norms in evaluation mode while training.
        with_cp: recompute each module in the backward pass rather than keep its activations; a batch counts once in the
            running statistics all the same.
        in_channels: input channels.
        init_cfg: mmengine's initialisation.
        inference_mode: build the deploy form; train-form weights are converted as they are loaded.

    Raises:
        ValueError: an argument out of its range, with its value.
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (4,),
        output_stride: Optional[int] = None,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        frozen_stages: int = -1,
        norm_cfg: Optional[Dict[str, Any]] = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: Any = None,
        inference_mode: bool = False,
    ) -> None:
        out_indices = tuple(out_indices)
        if not out_indices or list(out_indices) != sorted(set(out_indices)) or not set(out_indices) <= set(range(5)):
            raise ValueError(f"out_indices must be ascending numbers from 0 (stem) to 4, got {out_indices}")
        if frozen_stages not in range(-1, 5):
            raise ValueError(f"frozen_stages must be -1 (none), 0 (the stem) or 1 to 4, got {frozen_stages}")
        if len(strides) != 5 or not set(strides) <= {1, 2}:
            raise ValueError(f"strides must be five of 1 or 2, for the stem and four stages, got {tuple(strides)}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        norm_cfg = dict(norm_cfg or {"type": "BN"})
        super().__init__(
            width=widen_factor,
            strides=tuple(strides),
            inference_mode=inference_mode,
            in_chans=in_channels,
            num_classes=0,
            global_pool="",
            output_stride=output_stride,
            norm_layer=partial(_build_norm, norm_cfg),
        )
        self.init_cfg: Any = deepcopy(init_cfg)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        # modules behind the last map would be parameters without gradients, which DDP does not accept
        self.prune_intermediate_layers(list(out_indices))
        self.set_grad_checkpointing(with_cp)
        self._freeze()

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """``(N, in_channels, H, W)`` to the maps ``out_indices``, each ``(N, C, H / stride, W / stride)``."""
        return tuple(self.forward_intermediates(x, list(self.out_indices), stop_early=True, intermediates_only=True))

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says, once; see :func:`rdpnet_timm.openmmlab.checkpoint.init_weights`.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            RuntimeError: the checkpoint is that of another width or another network.
            ValueError: ``init_cfg`` is of the type Pretrained and names no checkpoint.
        """
        init_weights(self, self)

    def train(self, mode: bool = True) -> "RDPNet":
        """Set the mode; frozen stages, and with ``norm_eval`` all batch norms, stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> Sequence[nn.Module]:
        return [self.stem, *self.stages][: self.frozen_stages + 1]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval().requires_grad_(False)


def _build_norm(
    norm_cfg: Dict[str, Any],
    channels: int,
    device: Optional[torch.device] = None,
    dtype: Optional[torch.dtype] = None,
) -> nn.Module:
    from mmcv.cnn import build_norm_layer

    norm = build_norm_layer(norm_cfg, channels)[1]
    if not isinstance(norm, _BatchNorm) or not norm.track_running_stats:
        raise ValueError(
            f"norm_cfg must be a batch norm with running statistics, such as dict(type='BN') or dict(type='SyncBN'): "
            f"another one cannot be merged into a convolution; got {norm_cfg}"
        )
    return norm.to(device=device, dtype=dtype)
