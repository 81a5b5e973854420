# DeepLabV3+, RDPNet-0.75x, VOC2012:  mim train mmsegmentation mm_configs/deeplabv3plus_rdpnet075_voc.py
_base_ = "_base_/deeplabv3plus_voc12.py"
model = dict(
    backbone=dict(widen_factor=0.75),
    decode_head=dict(in_channels=960, c1_in_channels=48),
    auxiliary_head=dict(in_channels=192),
)
