# DeepLabV3+, RDPNet-1.25x, VOC2012:  mim train mmsegmentation mm_configs/deeplabv3plus_rdpnet_voc.py
_base_ = "_base_/deeplabv3plus_voc12.py"
model = dict(
    backbone=dict(widen_factor=1.25),
    decode_head=dict(in_channels=1600, c1_in_channels=80),
    auxiliary_head=dict(in_channels=320),
)
