# Faster R-CNN, RDPNet-1.25x, VOC2007:  mim train mmdet mm_configs/faster_rcnn_rdpnet_voc.py
_base_ = "_base_/faster_rcnn_voc07.py"
model = dict(backbone=dict(widen_factor=1.25), neck=dict(in_channels=[80, 160, 320, 1600]))
