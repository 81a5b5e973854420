# The same with a peer of the paper's Table 7, MobileNetV2-0.5x.
_base_ = "faster_rcnn_rdpnet075_bccd.py"
model = dict(
    backbone=dict(_delete_=True, type="TimmBackbone", model_name="mobilenetv2_050", out_indices=(1, 2, 3, 4)),
    neck=dict(in_channels=[16, 16, 48, 160]),
)
