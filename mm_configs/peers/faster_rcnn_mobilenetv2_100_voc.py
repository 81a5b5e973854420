# Faster R-CNN, MobileNetV2-1.0x, VOC2007: a peer of RDPNet in the paper's Table 6.
_base_ = "../_base_/faster_rcnn_voc07.py"
model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", model_name="mobilenetv2_100", out_indices=(1, 2, 3, 4)),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
