# DeepLabV3+, MobileNetV3-small-1.25x, VOC2012: a peer of RDPNet in the paper's Table 7.
_base_ = "../_base_/deeplabv3plus_voc12.py"
model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="mobilenetv3_small_100",
        channel_multiplier=1.25,
        out_indices=(1, 3, 4),
        output_stride=16,
    ),
    decode_head=dict(in_channels=720, c1_in_channels=24),
    auxiliary_head=dict(in_channels=64),
)
