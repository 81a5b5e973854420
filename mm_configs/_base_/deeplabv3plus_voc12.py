# DeepLabV3+ at output stride 16 on VOC2012 train -> val, mIoU (the paper's Table 7).
# The data is looked for in $VOCDEVKIT, else in data/VOCdevkit.
_base_ = [
    "mmseg::_base_/models/deeplabv3plus_r50-d8.py",
    "mmseg::_base_/datasets/pascal_voc12.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_20k.py",
    "rdpnet.py",
]
data_root = "{{$VOCDEVKIT:data/VOCdevkit}}/VOC2012"
norm_cfg = dict(type="SyncBN", requires_grad=True)  # plain BN on one device

# Maps: stage 1 (stride 4) is the decoder's low-level one, stage 3 the auxiliary head's, stage 4 (stride 16, dilated)
# ASPP's, whose dilations are halved against OpenMMLab's stride 8. An ImageNet checkpoint of timm's train.py goes in by
#   --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=model_best.pth.tar
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type="RDPNet", out_indices=(1, 3, 4), output_stride=16, norm_cfg=norm_cfg),
    decode_head=dict(in_index=2, dilations=(1, 6, 12, 18), num_classes=21),
    auxiliary_head=dict(in_index=1, num_classes=21),
)

# The schedule and the learning rate 0.01 are for 16 pictures, which OpenMMLab spreads over 4 devices. With several
# devices divide this batch by their number.
train_dataloader = dict(batch_size=16, dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
