# Faster R-CNN, MobileNetV2-0.5x, VOC2007: a peer of RDPNet in the paper's Table 6.
_base_ = "../_base_/faster_rcnn_voc07.py"
model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", model_name="mobilenetv2_050", out_indices=(1, 2, 3, 4)),
    neck=dict(in_channels=[16, 16, 48, 160]),
)
