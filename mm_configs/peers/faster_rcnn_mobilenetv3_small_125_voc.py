# Faster R-CNN, MobileNetV3-small-1.25x, VOC2007: a peer of RDPNet in the paper's Table 6.
_base_ = "../_base_/faster_rcnn_voc07.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="mobilenetv3_small_100",
        channel_multiplier=1.25,
        out_indices=(1, 2, 3, 4),
    ),
    neck=dict(in_channels=[24, 32, 64, 720]),
)
