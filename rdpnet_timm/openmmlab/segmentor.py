"""A whole segmentor of mmseg as one traceable function: a picture to the map of its classes."""

from typing import Any, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .picture import Picture, Resize, Unsupported

__all__ = ["Segmentor"]


class Segmentor(nn.Module):
    """An encoder-decoder: a picture ``(H, W, 3)``, RGB, to the class of each of its pixels.

    Args:
        model: an EncoderDecoder of mmseg, in evaluation mode. Its modules are shared, not copied.
        resize: that of the test pipeline.
        logits: return them too.

    Raises:
        Unsupported: another kind of segmentor or head, one that slides over its pictures, or one with a single output.
    """

    def __init__(self, model: Any, resize: Optional[Resize], logits: bool = False) -> None:
        super().__init__()
        _require_encoder_decoder(model)
        self.outputs = ("classes", "logits") if logits else ("classes",)
        self.picture = Picture(model.data_preprocessor, resize)
        self.backbone, self.neck, self.decode_head = model.backbone, getattr(model, "neck", None), model.decode_head

    def forward(self, image: Tensor) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Classes ``(H, W)``, uint8, and maybe logits ``(classes, H, W)``, both at the picture's own size."""
        x, given, size = self.picture(image)
        maps = self.backbone(x)
        if self.neck is not None:
            maps = self.neck(maps)
        logits = self._at(self.decode_head(maps), (x.shape[2], x.shape[3]))
        # mmseg resizes twice, to the network's picture and from there to the one given, and so does this
        logits = self._at(logits[:, :, : size[0], : size[1]], (given[0], given[1]))[0]
        classes = logits.argmax(0).to(torch.uint8)
        return (classes, logits) if "logits" in self.outputs else classes

    def _at(self, logits: Tensor, size: Tuple[Any, Any]) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.decode_head.align_corners)


def _require_encoder_decoder(model: Any) -> None:
    from mmseg.models import EncoderDecoder
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    if type(model) is not EncoderDecoder:
        raise Unsupported(
            f"expected an EncoderDecoder of mmseg, got a {type(model).__name__}: only its way from picture to classes "
            "is known here"
        )
    head = model.decode_head
    if any(
        getattr(type(head), name, None) is not getattr(BaseDecodeHead, name) for name in ("predict", "predict_by_feat")
    ):
        raise Unsupported(
            f"this segmentor's decode_head is a {type(head).__name__}, which has a way of its own from its outputs to "
            "logits: expected a head that predicts as mmseg's BaseDecodeHead does"
        )
    mode = model.test_cfg.get("mode", "whole")
    if mode != "whole":
        raise Unsupported(
            f"this segmentor's test_cfg.mode is '{mode}': it looks at parts of a picture in turn, as many as the "
            "picture needs; what is exported takes it whole: set model.test_cfg.mode='whole' and evaluate it so"
        )
    if not 1 < model.out_channels <= 256:
        raise Unsupported(f"expected logits of 2 to 256 classes, got {model.out_channels}")
