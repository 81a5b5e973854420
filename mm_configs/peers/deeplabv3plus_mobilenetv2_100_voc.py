# DeepLabV3+, MobileNetV2-1.0x, VOC2012: a peer of RDPNet in the paper's Table 7.
_base_ = "../_base_/deeplabv3plus_voc12.py"
model = dict(
    backbone=dict(
        _delete_=True, type="TimmBackbone", model_name="mobilenetv2_100", out_indices=(1, 3, 4), output_stride=16
    ),
    decode_head=dict(in_channels=320, c1_in_channels=24),
    auxiliary_head=dict(in_channels=96),
)
