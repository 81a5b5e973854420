# Faster R-CNN, RDPNet-0.75x, VOC2007:  mim train mmdet mm_configs/faster_rcnn_rdpnet075_voc.py
_base_ = "_base_/faster_rcnn_voc07.py"
model = dict(backbone=dict(widen_factor=0.75), neck=dict(in_channels=[48, 96, 192, 960]))
