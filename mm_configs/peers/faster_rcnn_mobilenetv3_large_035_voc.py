# Faster R-CNN, MobileNetV3-large-0.35x, VOC2007: a peer of RDPNet in the paper's Table 6.
_base_ = "../_base_/faster_rcnn_voc07.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="mobilenetv3_large_100",
        channel_multiplier=0.35,
        out_indices=(1, 2, 3, 4),
    ),
    neck=dict(in_channels=[8, 16, 40, 336]),
)
