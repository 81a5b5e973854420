# DeepLabV3+, MobileNetV3-large-0.35x, VOC2012: a peer of RDPNet in the paper's Table 7.
_base_ = "../_base_/deeplabv3plus_voc12.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="mobilenetv3_large_100",
        channel_multiplier=0.35,
        out_indices=(1, 3, 4),
        output_stride=16,
    ),
    decode_head=dict(in_channels=336, c1_in_channels=8),
    auxiliary_head=dict(in_channels=40),
)
