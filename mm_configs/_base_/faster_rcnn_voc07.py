# Faster R-CNN with FPN on VOC2007 trainval -> test, VOC's 11-point mAP at IoU 0.5 (the paper's Table 6).
# The data is looked for in $VOCDEVKIT, else in data/VOCdevkit.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/voc0712.py",
    "mmdet::_base_/default_runtime.py",
    "rdpnet.py",
]
data_root = "{{$VOCDEVKIT:data/VOCdevkit}}/"

# The paper starts from ImageNet weights. With a checkpoint of timm's train.py, freeze what a batch of two pictures
# would spoil, as OpenMMLab does:
#   --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=model_best.pth.tar
#                 model.backbone.norm_eval=True model.backbone.frozen_stages=1
model = dict(
    backbone=dict(_delete_=True, type="RDPNet", out_indices=(1, 2, 3, 4)), roi_head=dict(bbox_head=dict(num_classes=20))
)

train_dataloader = dict(
    persistent_workers=False,  # their random numbers would not be those of a resumed training
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=3,
        dataset=dict(
            type="VOCDataset",
            data_root=data_root,
            ann_file="VOC2007/ImageSets/Main/trainval.txt",
            data_prefix=dict(sub_data_root="VOC2007/"),
            filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=32),
            pipeline=_base_.train_pipeline,
        ),
    ),
)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

# OpenMMLab's schedule for VOC: 4 epochs over the data three times, a tenth of the learning rate in the last.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=4, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [dict(type="MultiStepLR", begin=0, end=4, by_epoch=True, milestones=[3], gamma=0.1)]

# OpenMMLab's 0.01 is for 8 devices x 2 pictures; it is scaled to the batch that is really run, here 1 x 2.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(enable=True, base_batch_size=16)
